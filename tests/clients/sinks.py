"""Checks a sink whose backend fails in every way, while a thousand users read.

Usage: sinks.py SIGNALPOST [--away S] [--phase S] [--users N] [--seed N]

It starts a server with a sink, and is the backend itself: it answers errors, hangs, resets, asks to wait, is away for a while, and recovers. At
the end the server is killed while events wait. Every event has to arrive, signed, in order for each subject, and again only with the same webhook-id;
every user has to read each message once, in order.
"""

import argparse
import asyncio
import base64
import importlib.util
import json
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

import websockets

ROOT = Path(__file__).parents[2]
# The client's file that can be copied by itself, as it is.
spec = importlib.util.spec_from_file_location("webhooks", ROOT / "clients/python/src/signalpost/webhooks.py")
webhooks = importlib.util.module_from_spec(spec)
sys.modules["webhooks"] = webhooks
spec.loader.exec_module(webhooks)

# Whatever must come comes within this time, also on a busy machine.
SOON_S = 60
# Events of each round: one for each of these subjects. And readers of one event, of which the policy allows no more.
SUBJECTS, SHARES = 100, 250
ROUND_S = 0.2
# Above it, a round of users' messages was held up. It is for a busy machine: an idle one needs some hundredths of a second.
SLOW_S = 5
SECRETS = ["whsec_" + base64.b64encode(bytes([byte]) * 32).decode() for byte in (1, 2)]
ATTEMPT_S = 1.0
CONFIG = """
[sinks.backend]
url = "http://127.0.0.1:{port}/signalpost"
events = ["sinks.*"]
sources = ["*"]
secret_files = ["{folder}/secrets"]

[sinks.backend.limits]
attempt_deadline_ms = 1000
backoff_ms = 50
backoff_max_ms = 1000

[store]
dir = "{folder}/store"
durability = "os"
"""


class Failed(Exception):
    pass


def ok(sentence):
    print(f"ok  sinks: {sentence}", flush=True)


def check(holds, what):
    if not holds:
        raise Failed(what)


class Backend:
    """Receives what the sink sends, does wrong what the phase says, and keeps account."""

    def __init__(self, chance):
        self.chance, self.phase, self.port = chance, "well", 0
        self.answered = defaultdict(lambda: -1)  # by subject: the newest event that was answered with 2xx
        self.webhooks, self.events = {}, {}  # the event of each webhook-id, and the other way round
        self.counts, self.wrong = Counter(), []
        self.writers = set()

    async def come(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, reuse_address=True)
        self.port = self.server.sockets[0].getsockname()[1]

    def go(self):
        self.server.close()
        for writer in [*self.writers]:
            reset(writer)

    async def serve(self, reader, writer):
        self.writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines[1:] if line)
                headers = {name.lower(): value for name, value in headers.items()}
                body = await reader.readexactly(int(headers["content-length"]))
                await self.request(headers, body, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        except Exception as error:
            self.wrong.append(repr(error))
        finally:
            self.writers.discard(writer)
            writer.close()

    async def request(self, headers, body, writer):
        for secret in SECRETS:
            webhooks.verify(headers, body, secret)
        event, id = json.loads(body), headers["webhook-id"]
        subject, n = event["subject"], event["data"]["n"]
        if self.webhooks.setdefault(id, event["id"]) != event["id"] or self.events.setdefault(event["id"], id) != id:
            self.wrong.append(f"{event['id']} came as {id} and as {self.events[event['id']]}")
        if n > self.answered[subject] + 1:
            self.wrong.append(f"{subject}: {n} came before {self.answered[subject] + 1} was answered")
        self.counts["again" if n <= self.answered[subject] else "attempts"] += 1
        if self.phase == "away":
            return reset(writer)
        what = self.chance.choice(PHASES[self.phase])
        self.counts[what] += 1
        match what:
            case "200":
                self.answered[subject] = max(self.answered[subject], n)
                await say(writer, "204 No Content", "")
            case "hangs":
                # The sink gives up before that.
                await asyncio.sleep(ATTEMPT_S * 10)
            case "resets":
                reset(writer)
            case "half an answer":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
                await writer.drain()
                reset(writer)
            case "asks to wait":
                await say(writer, self.chance.choice(["429 Too Many Requests", "503 Service Unavailable"]), "retry-after: 1\r\n")
            case "redirects":
                await say(writer, "307 Temporary Redirect", f"location: http://127.0.0.1:{self.port}/elsewhere\r\n")
            case status:
                await say(writer, status, "")


PHASES = {
    "well": ["200"],
    "500": ["500 Internal Server Error"],
    "hangs": ["hangs"],
    "resets": ["resets", "half an answer"],
    "asks to wait": ["asks to wait"],
    "everything": ["200"] * 6
    + [
        "500 Internal Server Error",
        "502 Bad Gateway",
        "408 Request Timeout",
        "425 Too Early",
        "hangs",
        "resets",
        "half an answer",
        "asks to wait",
        "redirects",
    ],
}


async def say(writer, status, more):
    writer.write(f"HTTP/1.1 {status}\r\n{more}content-length: 0\r\n\r\n".encode())
    await writer.drain()


def reset(writer):
    """Ends a connection with an RST, if it has not ended."""
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


class Server:
    """A real server with the sink, at a port that it keeps over a crash."""

    def __init__(self, binary, folder, backend_port):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.listen = f"127.0.0.1:{free.getsockname()[1]}"
        self.base = f"http://{self.listen}/api/pool"
        (folder / "secrets").write_text("\n".join(SECRETS))
        (folder / "signalpost.toml").write_text(CONFIG.format(port=backend_port, folder=folder))
        self.command = [binary, "serve", "--config", folder / "signalpost.toml", "--listen", self.listen, "--plugins", ROOT / "plugins"]
        self.log = folder / "server.log"

    async def start(self):
        with self.log.open("ab") as log:
            environment = os.environ | {"SIGNALPOST_LOG_FORMAT": "text"}
            self.process = await asyncio.create_subprocess_exec(*self.command, env=environment, stdout=log, stderr=log)
        await until("the server is ready", self.is_ready)

    async def is_ready(self):
        check(self.process.returncode is None, f"the server did not start:\n{self.log.read_text()[-2000:]}")
        try:
            return await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://{self.listen}/readyz", timeout=SOON_S).status == 200)
        except OSError:
            return False

    async def kill(self, how=signal.SIGKILL):
        if self.process.returncode is None:
            self.process.send_signal(how)
            await self.process.wait()

    async def get(self, path):
        return await asyncio.to_thread(lambda: json.load(urllib.request.urlopen(self.base + path, timeout=SOON_S)))

    async def publish(self, events):
        body = json.dumps([{"specversion": "1.0", "source": "/sinks", **event} for event in events]).encode()
        request = urllib.request.Request(f"{self.base}/events", body, {"Content-Type": "application/cloudevents-batch+json"})
        status = await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=SOON_S).status)
        check(status == 202, f"a batch was answered with {status}")

    async def sink(self):
        return (await self.get("/sinks"))["sinks"][0]


async def until(what, holds, within_s=SOON_S):
    ends = time.monotonic() + within_s
    while not await holds():
        check(time.monotonic() < ends, f"{what}: not within {within_s} s")
        await asyncio.sleep(0.05)


class Users:
    """Sockets that read what a policy tells them: in each round one message each."""

    def __init__(self, server, count):
        self.server, self.read, self.at = server, {str(user): [] for user in range(count)}, {}

    async def __aenter__(self):
        gate, self.tasks = asyncio.Semaphore(50), []
        ready = [asyncio.get_running_loop().create_future() for _ in self.read]

        async def user(name, opened):
            async with gate:
                socket = await websockets.connect(
                    f"{self.server.base.replace('http', 'ws')}/ws/{name}", open_timeout=SOON_S, compression=None, ping_interval=None
                )
            async with socket:
                opened.set_result(None)
                async for text in socket:
                    n = json.loads(text)["n"]
                    self.read[name].append(n)
                    self.at[n] = time.monotonic()

        self.tasks = [asyncio.create_task(user(*one)) for one in zip(self.read, ready, strict=True)]
        await asyncio.wait_for(asyncio.gather(*ready), SOON_S)
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def publish(self, n):
        shares = [{"rider_id": int(user), "amount": 1, "currency": "EUR"} for user in self.read]
        parts = [shares[begin : begin + SHARES] for begin in range(0, len(shares), SHARES)]
        data = [
            {"type": "pooling.fare.updated", "id": f"fare-{n}-{index}", "data": {"pool_id": 1, "n": n, "shares": part}}
            for index, part in enumerate(parts)
        ]
        await self.server.publish(data)

    def have_read(self, rounds):
        return all(len(read) >= rounds for read in self.read.values())


def sink_events(n):
    return [{"type": "sinks.done", "id": f"{subject}-{n}", "subject": f"s{subject}", "data": {"n": n}} for subject in range(SUBJECTS)]


async def failing(server, backend, users, options):
    """All phases, with rounds of events for the sink and of messages for the users."""
    chance, n, slowest = random.Random(options.seed), 0, 0.0
    middle = ["500", "hangs", "resets", "asks to wait", "everything"]
    chance.shuffle(middle)
    for phase in ["well", *middle, "away", "everything"]:
        backend.phase = phase
        if phase == "away":
            backend.go()
        ends = time.monotonic() + (options.away if phase == "away" else options.phase)
        while time.monotonic() < ends:
            began = time.monotonic()
            await asyncio.gather(server.publish(sink_events(n)), users.publish(n))
            n += 1
            await until(f"all users have read round {n}", lambda n=n: asyncio.sleep(0, users.have_read(n)))
            slowest = max(slowest, users.at[n - 1] - began)
            await asyncio.sleep(max(0, began + ROUND_S - time.monotonic()))
        state = (await server.sink())["state"]
        if phase == "away":
            check(state == "failing", f"while the backend is away the sink is {state}")
            await backend.come()
        print(
            f"    {phase}: the sink is {state}, {sum(last + 1 for last in backend.answered.values())} of {n * SUBJECTS} events are answered",
            flush=True,
        )
    return n, slowest


async def recovered(server, backend, rounds):
    backend.phase = "well"
    await until(
        "all events have arrived",
        lambda: asyncio.sleep(0, all(backend.answered[f"s{subject}"] == rounds - 1 for subject in range(SUBJECTS))),
    )

    async def is_settled():
        return (await server.sink())["waiting"] == 0

    await until("nothing waits in the sink", is_settled)
    check(not backend.wrong, f"{len(backend.wrong)} things were wrong: {backend.wrong[:5]}")
    check(len(backend.events) == rounds * SUBJECTS, f"{len(backend.events)} events arrived of {rounds * SUBJECTS}")
    letters = (await server.get("/dead-letters"))["letters"]
    check(letters == 0, f"there are {letters} dead letters")


async def main(options):
    chance = random.Random(options.seed + 1)
    backend = Backend(chance)
    await backend.come()
    with tempfile.TemporaryDirectory() as name:
        server = Server(options.signalpost, Path(name), backend.port)
        await server.start()
        try:
            async with Users(server, options.users) as users:
                rounds, slowest = await failing(server, backend, users, options)
                await recovered(server, backend, rounds)
                counters = (await server.sink())["counters"]
                expected = {"heard": rounds * SUBJECTS, "accepted": rounds * SUBJECTS, "refused": 0, "expired": 0, "overflowed": 0}
                check(counters == expected, f"the sink counted {counters} instead of {expected}")
                faults = ", ".join(
                    f"{what} ({count})" for what, count in sorted(backend.counts.items()) if what not in ("200", "attempts", "again")
                )
                ok(
                    f"{rounds * SUBJECTS} events arrived through {faults}; "
                    f"{backend.counts['again']} came again after their answer, with the same webhook-id"
                )
                for user, read in users.read.items():
                    check(read == list(range(rounds)), f"user {user} read {read}")
                check(slowest < SLOW_S, f"a round of {options.users} messages took {slowest:.1f} s")
                ok(f"{options.users} users read {rounds} messages each, once and in order; the slowest round took {slowest * 1000:.0f} ms")
            await crashed(server, backend, rounds)
        except Failed:
            print(server.log.read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            backend.go()
            await server.kill()


async def crashed(server, backend, rounds):
    """What waits in a sink is stored: it goes out after a kill -9."""
    backend.phase = "away"
    backend.go()
    for n in range(rounds, rounds + 5):
        await server.publish(sink_events(n))
    await server.kill()
    await backend.come()
    await server.start()
    await recovered(server, backend, rounds + 5)
    ok(f"{5 * SUBJECTS} events that waited when the server was killed arrived after its start")


parser = argparse.ArgumentParser()
parser.add_argument("signalpost")
parser.add_argument("--away", type=float, default=60)
parser.add_argument("--phase", type=float, default=5)
parser.add_argument("--users", type=int, default=1000)
parser.add_argument("--seed", type=int, default=1)
options = parser.parse_args()
print(f"    seed {options.seed}", flush=True)
try:
    asyncio.run(main(options))
except Failed as failed:
    sys.exit(f"FAILED  sinks, seed {options.seed}: {failed}")
