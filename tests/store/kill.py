"""Kills a server again and again while it is under load, and checks after each restart that it has what it answered for.

Usage: kill.py SERVER_BINARY [--rounds N] [--seed S]       (needs the package `websockets`; `run` beside this file installs it)

Sixteen producers send direct messages, matches, chats, trips and cancellations, alone and in batches, each event with an id. The ledger
of what they sent is here, outside the server. At a random moment the server is killed with SIGKILL and started again on the same store.
What was not answered is sent again with the same id. Then, for each user, everything after the last ack must be there: each message of
each producer, in the order of its events, and a second copy only of the same event. What the policy made of the events in groups and in
its state is asked by further events, whose recipients the ledger knows.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

PRODUCERS = 16
USERS = [f"u{number}" for number in range(40)]
POOLS_EACH = 4
BATCH = 20
# Producers pause when a user has that many messages of this round.
UNREAD_MAX = 80
# Whatever must come comes within this time, also on a busy machine.
SOON_S = 30
PLUGINS = pathlib.Path(__file__).resolve().parents[2] / "plugins"


class Failed(Exception):
    pass


class Server:
    """One process after the other on the same store."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder

    def start(self, durability):
        settings = {
            "STORE_DIR": self.folder / "store",
            "STORE_DURABILITY": durability,
            # So small that segments are closed and cleaned all the time.
            "STORE_SEGMENT_BYTES": 65_536,
            "STORE_MARKS_INTERVAL_MS": 100,
            # Room for more than two rounds send, so that only what was read makes room. Then its records are dead, and are cleaned.
            "MAILBOXES_MESSAGES_MAX": 3 * UNREAD_MAX,
            "MAILBOXES_BYTES_MAX": 100_000_000,
            "MAILBOXES_RESUME_MS": 3_600_000,
            "LOG_FORMAT": "json",
        }
        environment = os.environ | {f"SIGNALPOST_{name}": str(value) for name, value in settings.items()}
        self.log = self.folder / "server.log"
        with open(self.log, "wb") as log:
            command = [self.binary, "serve", "--listen", "127.0.0.1:0", "--plugins", PLUGINS]
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)

    async def listen(self):
        for _ in range(SOON_S * 50):
            found = re.search(r'"listening on http://([^:/]+):(\d+)([^"]*)"', self.log.read_text())
            if found:
                self.host, self.port, self.base = found[1], int(found[2]), found[3]
                return
            if self.process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        raise Failed(f"the server does not start again; its log is {self.log}")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Http:
    """One connection that stays open."""

    def __init__(self, server):
        self.server, self.reader, self.writer = server, None, None

    async def post(self, path, body, kind, key=None):
        """Returns the status and the document, or raises OSError or EOFError if there was no answer."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.server.host, self.server.port)
        data = json.dumps(body).encode()
        head = f"POST {self.server.base}{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        head += f"Idempotency-Key: {key}\r\n\r\n" if key else "\r\n"
        self.writer.write(head.encode() + data)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"(?i)content-length: *(\d+)", answer)[1])
        return int(answer.split()[1]), json.loads(await self.reader.readexactly(length))

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.writer = None


class Event:
    def __init__(self, id, type, data, recipients):
        self.id, self.type, self.recipients = id, type, recipients
        self.data = data | {"eid": id}

    def cloud_event(self):
        return {"specversion": "1.0", "id": self.id, "source": "/kill", "type": self.type, "data": self.data}


class Producer:
    """Sends one request at a time. Its pools are its own, so it knows who is in them."""

    def __init__(self, name, ledger, seed):
        self.name, self.ledger, self.count = name, ledger, 0
        self.random = random.Random(f"{seed} {name}")
        self.pools = {f"{name}-{number}": (set(), None) for number in range(POOLS_EACH)}
        self.unanswered, self.answered = None, []

    def event(self, type, data, recipients):
        self.count += 1
        event = Event(f"{self.name}.{self.count}", type, data, set(recipients))
        for user in event.recipients:
            self.ledger[user].setdefault(self.name, []).append(event.id)
        return event

    def direct(self):
        user = self.random.choice(USERS)
        return self.event(f"direct {user}", {"text": "x" * self.random.randrange(400)}, [user])

    def routed(self):
        pool = self.random.choice(list(self.pools))
        members, driver = self.pools[pool]
        kind = self.random.random()
        if not members or kind < 0.2:
            rider, new_driver = self.random.sample(USERS, 2)
            self.pools[pool] = (members | {rider, new_driver}, new_driver)
            data = {"request_id": 1, "rider_id": rider, "driver_id": new_driver, "pool_id": pool}
            return self.event("pooling.match.found", data, [rider, new_driver])
        by = self.random.choice(sorted(members))
        if kind < 0.35:
            left = members - {by}
            is_over = by == driver or not left - {driver}
            self.pools[pool] = (set(), None) if is_over else (left, driver)
            return self.event("pooling.match.cancelled", {"request_id": 1, "pool_id": pool, "by": by}, members - {by})
        if kind < 0.5:
            return self.event("pooling.trip.started", {"pool_id": pool, "by": by}, members - {by})
        return self.chat(pool, by)

    def chat(self, pool, by):
        data = {"pool_id": pool, "from": by, "text": "y" * self.random.randrange(400)}
        return self.event("pooling.chat.message", data, self.pools[pool][0] - {by})

    async def send(self, http, events):
        """Sends until there is an answer; what has none yet is `unanswered`."""
        self.unanswered = events
        while True:
            first = events[0]
            if first.type.startswith("direct "):
                user = first.type.removeprefix("direct ")
                status, answer = await http.post(f"/users/{user}/messages", first.data, "application/json", key=first.id)
            elif len(events) == 1:
                status, answer = await http.post("/events", first.cloud_event(), "application/cloudevents+json")
            else:
                batch = [event.cloud_event() for event in events]
                status, answer = await http.post("/events", batch, "application/cloudevents-batch+json")
            if status == 202:
                break
            if status not in (207, 409, 503):
                raise Failed(f"{first.id} is answered with {status}: {answer}")
            await asyncio.sleep(0.05)
        for event, receipt in zip(events, answer if len(events) > 1 else [answer], strict=True):
            if receipt.get("stored") not in ("system", "disk"):
                raise Failed(f"the receipt of {event.id} does not say where it is stored: {receipt}")
            if receipt.get("dropped"):
                raise Failed(f"{event.id} met a bound of the server: {receipt}")
            if not receipt["duplicate"] and not event.type.startswith("direct ") and receipt["recipients"] != len(event.recipients):
                raise Failed(f"{event.id} ({event.type} {event.data}) reaches {receipt['recipients']} users, not {sorted(event.recipients)}")
        self.answered += events
        self.unanswered = None
        return answer

    async def run(self, server):
        http = Http(server)
        try:
            while server.process.returncode is None:
                kind = self.random.random()
                if max(sum(map(len, messages.values())) for messages in self.ledger.values()) > UNREAD_MAX:
                    await asyncio.sleep(0.01)
                elif kind < 0.4:
                    await self.send(http, [self.direct()])
                else:
                    await self.send(http, [self.routed() for _ in range(BATCH if kind > 0.9 else 1)])
        except (OSError, EOFError):
            pass  # The server was killed.
        finally:
            http.close()


class Reader:
    """One user. `read` has the event ids up to the last ack, in the order of their seqs."""

    def __init__(self, user, random):
        self.user, self.random = user, random
        self.epoch, self.cursor, self.read = None, 0, []

    async def open(self, server):
        url = f"ws://{server.host}:{server.port}{server.base}/ws/{self.user}"
        return connect(url, subprotocols=["signalpost.v1"], proxy=None, open_timeout=SOON_S, max_size=None)

    async def follow(self, server, last=None):
        """Reads on from the last ack, until the message of the event `last` or for ever; acks some of it, or the last."""
        async with await self.open(server) as socket:
            hello = json.loads(await socket.recv())
            if self.epoch is None:
                self.epoch = hello["data"]["epoch"]
            await socket.send(json.dumps({"type": "resume", "epoch": self.epoch, "seq": self.cursor}))
            answer = json.loads(await socket.recv())
            if answer != {"type": "resume", "data": {"recovered": True, "from": self.cursor}}:
                raise Failed(f"{self.user} resumes {self.epoch} after {self.cursor} and is answered {answer}, after {hello}")
            pending, seq = [], self.cursor
            while True:
                frame = json.loads(await socket.recv())
                if frame["type"] != "message" or frame["seq"] <= seq:
                    raise Failed(f"{self.user} reads after seq {seq}: {frame}")
                seq = frame["seq"]
                pending.append(frame["data"]["eid"])
                if pending[-1] == last or (last is None and self.random.random() < 0.1):
                    await socket.send(json.dumps({"type": "ack", "seq": seq}))
                    self.cursor, self.read, pending = seq, self.read + pending, []
                if last is not None and not pending:
                    return

    async def run(self, server):
        try:
            await self.follow(server)
        except (OSError, EOFError, WebSocketException):
            pass  # The server was killed.

    def check(self, expected):
        """Compares what was read since the last check with the ledger: the first copies of each producer, in order."""
        first = {}
        for id in dict.fromkeys(self.read):
            first.setdefault(id.split(".")[0], []).append(id)
        for producer in sorted(first.keys() | expected.keys()):
            found, wanted = first.get(producer, []), expected.get(producer, [])
            if found != wanted:
                lost, unknown = [id for id in wanted if id not in found], [id for id in found if id not in wanted]
                what = f"lost {lost}, unknown {unknown}" if lost or unknown else f"another order: {found}, not {wanted}"
                raise Failed(f"{self.user}, messages of {producer}: {what}")
        self.read = []


class Check:
    def __init__(self, binary, folder, seed):
        self.random, self.server = random.Random(seed), Server(binary, folder)
        self.ledger = {user: {} for user in USERS}
        self.producers = [Producer(f"p{number}", self.ledger, seed) for number in range(PRODUCERS)]
        self.verifier = Producer("v", self.ledger, seed)
        self.readers = [Reader(user, random.Random(f"{seed} {user}")) for user in USERS]
        self.number = self.events = self.copies = 0

    async def start(self):
        self.server.start(self.random.choice(["os", "fsync"]))
        if self.random.random() < 0.25:
            # Killed while it starts, or shortly after.
            await asyncio.sleep(self.random.uniform(0, 0.15))
            self.server.kill()
            self.server.start(self.random.choice(["os", "fsync"]))
        await self.server.listen()

    async def round(self):
        if self.random.random() < 0.4:
            # The server cleans its log once a second: so it begins to under this load.
            await asyncio.sleep(self.random.uniform(0.4, 1))
        load = [asyncio.create_task(producer.run(self.server)) for producer in self.producers]
        load += [asyncio.create_task(reader.run(self.server)) for reader in self.random.sample(self.readers, len(USERS) // 2)]
        await asyncio.sleep(self.random.uniform(0.05, 0.8))
        self.server.kill()
        async with asyncio.timeout(SOON_S):
            await asyncio.gather(*load)
        await self.start()
        async with asyncio.timeout(SOON_S):
            await self.verify()

    async def verify(self):
        http = Http(self.server)
        for producer in self.producers:
            if producer.unanswered:
                await producer.send(http, producer.unanswered)
        for producer in self.producers:
            # What was answered is known as a duplicate, also after the restart.
            for event in self.random.sample(producer.answered, min(3, len(producer.answered))):
                answer = await producer.send(http, [event])
                if not answer["duplicate"]:
                    raise Failed(f"{event.id} was answered, and is taken for new when it is sent again")
            self.events += len(producer.answered)
            producer.answered = []
            for pool, (members, _) in producer.pools.items():
                self.verifier.pools[pool] = (members, None)
                await self.verifier.send(http, [self.verifier.chat(pool, "nobody")])
        await self.read_all(http)
        http.close()

    async def read_all(self, http):
        for reader in self.readers:
            last = self.verifier.event(f"direct {reader.user}", {}, [reader.user])
            await self.verifier.send(http, [last])
            await reader.follow(self.server, last.id)
            self.copies += len(reader.read) - len(set(reader.read))
            reader.check(self.ledger[reader.user])
            self.ledger[reader.user].clear()

    async def run(self, rounds):
        try:
            await self.start()
            await self.read_all(Http(self.server))
            for self.number in range(1, rounds + 1):
                await self.round()
            self.cleaned = min(int(segment.stem) for segment in (self.server.folder / "store").glob("*.seg")) - 1
        finally:
            self.server.kill()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary", type=pathlib.Path)
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = arguments.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="signalpost-kill-"))
    check = Check(arguments.binary.resolve(), folder, arguments.seed)
    try:
        asyncio.run(check.run(arguments.rounds))
    except BaseException as error:
        print(f"FAILED  seed {arguments.seed}, round {check.number}, folder {folder}: {error!r}", file=sys.stderr)
        if not isinstance(error, Failed):
            raise
        sys.exit(1)
    shutil.rmtree(folder)
    print(
        f"ok  seed {arguments.seed}: {arguments.rounds} kills, {check.events} answered events, nothing lost; "
        f"{check.copies} read twice, {check.cleaned} segments cleaned"
    )


main()
