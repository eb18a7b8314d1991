"""What the programs of this folder share: a server on a store, producers who keep a ledger of what they sent, and readers.

Producers send direct messages, matches, chats, trips and cancellations, alone and in batches, each event with an id. The ledger of what they
sent is here, outside the server.
"""

import argparse
import asyncio
import contextlib
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

USERS = [f"u{number}" for number in range(16)]
POOLS_EACH = 4
BATCH = 8
# A reader acks at the latest after that many messages.
UNACKED_MAX = 10
# So small that segments are closed and cleaned all the time.
SEGMENT_BYTES = 16_384
# Producers pause when a user has that many messages of this round.
UNREAD_MAX = 40
# Whatever must come comes within this time, also on a busy machine.
SOON_S = 30
PLUGINS = pathlib.Path(__file__).resolve().parents[2] / "plugins"


class Failed(Exception):
    pass


def arguments_of(**numbers):
    """The command line: the server's binary, a seed, and these options, each a whole number with its default and what else argparse takes."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary", type=pathlib.Path)
    arguments.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    for name, options in numbers.items():
        arguments.add_argument(f"--{name}", type=int, **options)
    return arguments.parse_args()


@contextlib.contextmanager
def folder_of(what, seed, progress=str):
    """A folder for one run. It is removed after success; a failure keeps it, and says how to repeat the run and how far it came."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"signalpost-{what}-"))
    try:
        yield folder
    except BaseException as error:
        print(f"FAILED  seed {seed}{progress()}, folder {folder}: {error!r}", file=sys.stderr)
        if not isinstance(error, Failed):
            raise
        sys.exit(1)
    shutil.rmtree(folder)


class Server:
    """One process after the other on the same store."""

    def __init__(self, binary, folder, messages_max):
        self.binary, self.folder, self.messages_max = binary, folder, messages_max

    def start(self, durability, around=()):
        """Starts it. `around`: a program that runs it, and its arguments."""
        settings = {
            "STORE_DIR": self.folder / "store",
            "STORE_DURABILITY": durability,
            "STORE_SEGMENT_BYTES": SEGMENT_BYTES,
            "STORE_MARKS_INTERVAL_MS": 100,
            # What was read makes room for what is new. Then its records are dead, and are cleaned.
            "MAILBOXES_MESSAGES_MAX": self.messages_max,
            "MAILBOXES_BYTES_MAX": 100_000_000,
            # Nothing is over while a check runs, however slow the machine is.
            "MAILBOXES_RESUME_MS": 3_600_000,
            "EVENTS_DEDUP_WINDOW_MS": 3_600_000,
            # A few rounds' ids. Each counts as something that the log has to keep.
            "EVENTS_DEDUP_ENTRIES_MAX": 4_000,
            "LOG_FORMAT": "json",
        }
        environment = os.environ | {f"SIGNALPOST_{name}": str(value) for name, value in settings.items()}
        self.log = self.folder / "server.log"
        with open(self.log, "wb") as log:
            command = [*around, self.binary, "serve", "--listen", "127.0.0.1:0", "--plugins", PLUGINS]
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

    async def metrics(self):
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        return {name: float(value) for name, value in re.findall(r"(?m)^([a-z_]+) ([-+.0-9e]+)\r?$", text)}

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def stop(self):
        """Stops it in order."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SOON_S):
            while self.process.poll() is None:
                await asyncio.sleep(0.01)
        if self.process.returncode:
            raise Failed(f"a server that is told to stop ends with {self.process.returncode}; its log is {self.log}")


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


def messages_max(producers, unread_max=UNREAD_MAX):
    """Returns a bound on a mailbox that costs no message: producers pause at `unread_max`, each with a batch under way."""
    return unread_max + producers * BATCH + UNACKED_MAX + 10


class Event:
    def __init__(self, id, type, data, recipients):
        self.id, self.type, self.recipients = id, type, recipients
        self.data = data | {"eid": id}
        # The members of the producer's pools after it, and the first event of the request that it was sent with.
        self.pools, self.request = {}, None

    def cloud_event(self):
        return {"specversion": "1.0", "id": self.id, "source": "/kill", "type": self.type, "data": self.data}


class Producer:
    """Sends one request at a time. Its pools are its own, so it knows who is in them."""

    def __init__(self, name, ledger, seed, unread_max=UNREAD_MAX):
        self.name, self.ledger, self.unread_max, self.count = name, ledger, unread_max, 0
        self.random = random.Random(f"{seed} {name}")
        self.pools = {f"{name}-{number}": (set(), None) for number in range(POOLS_EACH)}
        self.unanswered, self.answered, self.events = None, [], {}

    def event(self, type, data, recipients):
        self.count += 1
        event = Event(f"{self.name}.{self.count}", type, data, set(recipients))
        event.pools = {pool: set(members) for pool, (members, _) in self.pools.items()}
        self.events[self.count] = event
        for user in event.recipients:
            self.ledger[user].setdefault(self.name, []).append(event.id)
        return event

    def direct(self):
        user = self.random.choice(list(self.ledger))
        return self.event(f"direct {user}", {"text": "x" * self.random.randrange(400)}, [user])

    def routed(self):
        pool = self.random.choice(list(self.pools))
        members, driver = self.pools[pool]
        kind = self.random.random()
        if not members or kind < 0.2:
            rider, new_driver = self.random.sample(list(self.ledger), 2)
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
        self.unanswered, first = events, events[0]
        for event in events:
            event.request = first.id
        while True:
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
            if self.unanswered:
                await self.send(http, self.unanswered)
            while server.process.returncode is None:
                kind = self.random.random()
                if max(sum(map(len, messages.values())) for messages in self.ledger.values()) > self.unread_max:
                    await asyncio.sleep(0.01)
                elif kind < 0.4:
                    await self.send(http, [self.direct()])
                else:
                    await self.send(http, [self.routed() for _ in range(BATCH if kind > 0.9 else 1)])
        except (OSError, EOFError):
            pass  # The server was killed.
        finally:
            http.close()


async def resumed(socket, cursor):
    """Returns the answer to a resume, and the messages before it: a server that waited long enough for the resume begins without one.

    Then it begins with what no client has acked, and what is sent before the answer may be sent again.
    """
    early = []
    while True:
        frame = json.loads(await socket.recv())
        if frame["type"] == "resume":
            return frame, early
        if frame["type"] == "message" and frame["seq"] > cursor:
            early.append(frame)


class Reader:
    """One user. `read` has the event ids up to the last ack, in the order of their seqs."""

    def __init__(self, user, random):
        self.user, self.random = user, random
        self.epoch, self.cursor, self.read = None, 0, []
        # All that it ever got, and from which ports.
        self.got, self.ports = set(), set()

    async def open(self, server):
        url = f"ws://{server.host}:{server.port}{server.base}/ws/{self.user}"
        return connect(url, subprotocols=["signalpost.v1"], proxy=None, open_timeout=SOON_S, max_size=None)

    async def follow(self, server, last=None):
        """Reads on from the last ack, until the message of the event `last` or for ever; acks some of it, or the last."""
        async with await self.open(server) as socket:
            self.ports.add(socket.local_address[1])
            hello = json.loads(await socket.recv())
            if self.epoch is None:
                self.epoch = hello["data"]["epoch"]
            await socket.send(json.dumps({"type": "resume", "epoch": self.epoch, "seq": self.cursor}))
            answer, early = await resumed(socket, self.cursor)
            again = {frame["seq"]: frame for frame in early}
            if answer != {"type": "resume", "data": {"recovered": True, "from": self.cursor}}:
                raise Failed(f"{self.user} resumes {self.epoch} after {self.cursor} and is answered {answer}, after {hello}")
            pending, seq = [], self.cursor
            while True:
                frame = early.pop(0) if early else json.loads(await socket.recv())
                if frame["type"] == "reconnect":
                    continue  # The server stops.
                if frame["type"] == "message" and frame["seq"] <= seq and again.get(frame["seq"]) == frame:
                    continue
                if frame["type"] != "message" or frame["seq"] <= seq:
                    raise Failed(f"{self.user} reads after seq {seq}: {frame}")
                seq = frame["seq"]
                pending.append(frame["data"]["eid"])
                self.got.add(pending[-1])
                if pending[-1] == last or (last is None and (self.random.random() < 0.2 or len(pending) == UNACKED_MAX)):
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
