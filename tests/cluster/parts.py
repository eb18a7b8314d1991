"""The parts of the program in this folder: NATS servers, nodes, producers and devices, all on this machine's loopback."""

import asyncio
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from proxy import Proxy

# Whatever must come comes within this time, also on a busy machine.
SOON_S = 60
BASE = "/api/pool"
PLUGINS = pathlib.Path(__file__).resolve().parents[2] / "plugins"


class Failed(Exception):
    pass


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Process:
    """A process that is started again on the same folder."""

    def __init__(self, name, folder):
        self.name, self.folder, self.process, self.log = name, folder, None, folder / f"{name}.log"

    def spawn(self, command, environment=None):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()


class Nats:
    """One NATS server, or three that have a copy of everything each."""

    def __init__(self, binary, folder, count):
        self.binary, self.folder, self.count = binary, folder, count
        version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = tuple(int(part) for part in re.search(r"(\d+)\.(\d+)\.(\d+)", version).groups())
        self.ports, routes = free_ports(count), free_ports(count)
        self.servers = []
        for index, (port, route) in enumerate(zip(self.ports, routes)):
            name = f"nats{index}"
            sync = "sync_interval: always" if self.version >= (2, 10, 23) else ""
            text = f"server_name: {name}\nlisten: 127.0.0.1:{port}\nmax_payload: 8388608\n"
            text += f'jetstream {{ store_dir: "{folder / name}", {sync} }}\n'
            # The nodes may ask the servers how they are set.
            asked = "$SYS.REQ.SERVER.PING.VARZ"
            text += f'accounts {{ NODES: {{ jetstream: enabled, users: [{{user: node, password: node}}], imports: [{{service: {{account: SYS, subject: "{asked}"}}}}] }}\n'
            text += f'SYS: {{ exports: [{{service: "{asked}", accounts: [NODES], response: stream}}] }} }}\n'
            text += "system_account: SYS\nno_auth_user: node\n"
            if count > 1:
                others = ", ".join(f"nats://127.0.0.1:{other}" for other in routes)
                # Nodes learn of no address by which they could go around their proxies.
                text += f"cluster {{ name: test, listen: 127.0.0.1:{route}, routes: [{others}], no_advertise: true }}\n"
            (folder / f"{name}.conf").write_text(text)
            self.servers.append(Process(name, folder))

    async def publish(self, subject, payload, headers=None):
        """Publishes to JetStream at the first server that is there, and returns its answer. NATS' protocol is text."""
        for port in self.ports:
            try:
                return await publish(port, subject, payload, headers or {})
            except (OSError, EOFError, TimeoutError):
                continue
        raise EOFError("no NATS server has answered")

    def start(self, index):
        server = self.servers[index]
        server.spawn([self.binary, "-c", str(self.folder / f"{server.name}.conf")])

    def start_all(self):
        for index in range(self.count):
            self.start(index)

    def end(self):
        for server in self.servers:
            server.end()


async def publish(port, subject, payload, headers):
    head = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await reader.readline()
            writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB answers 1\r\n')
            writer.write(f"HPUB {subject} answers {len(head)} {len(head) + len(payload)}\r\n{head}".encode() + payload + b"\r\n")
            await writer.drain()
            while not (line := await reader.readline()).startswith((b"MSG", b"HMSG", b"-ERR")):
                if not line:
                    raise EOFError("NATS has closed the connection")
            if not line.startswith(b"MSG"):
                raise EOFError(f"NATS answers with {line}")
            return json.loads(await reader.readexactly(int(line.split()[-1])))
        finally:
            writer.close()


class Node(Process):
    def __init__(self, binary, folder, index, nats, settings):
        super().__init__(f"node{index}", folder)
        self.binary, self.index, self.nats, self.proxy = binary, index, nats, Proxy(nats.ports)
        self.port = free_ports(1)[0]
        # A folder of its own.
        self.plugins = folder / f"{self.name}-plugins"
        shutil.copytree(folder / "plugins", self.plugins)
        settings = {
            "CLUSTER_NODE": self.name,
            "CLUSTER_REPLICAS": nats.count,
            "LOG_FORMAT": "text",
            # Nothing is over while a check runs, however slow the machine is.
            "MAILBOXES_RESUME_MS": 3_600_000,
            "EVENTS_DEDUP_WINDOW_MS": 3_600_000,
        } | settings
        self.environment = os.environ | {f"SIGNALPOST_{name}": str(value) for name, value in settings.items()}
        self.use(nats.ports)

    def use(self, ports):
        """Has the node use these ports of NATS, from its next start on."""
        self.environment["SIGNALPOST_CLUSTER_NATS"] = json.dumps([f"nats://127.0.0.1:{port}" for port in ports])

    def start(self):
        command = [self.binary, "serve", "--listen", f"127.0.0.1:{self.port}", "--plugins", str(self.plugins)]
        self.spawn([*command, "--config", str(self.folder / "signalpost.toml")], self.environment)

    def stop(self):
        """Tells the node to stop, and waits until it has."""
        self.signal(signal.SIGTERM)
        self.has_stopped()

    def has_stopped(self):
        if self.process.wait(SOON_S) != 0:
            raise Failed(f"a node that is told to stop ends with {self.process.returncode}")

    async def request(self, method, path, body=None, headers=(), deadline=SOON_S):
        """Returns the status and the body. Raises OSError, EOFError or TimeoutError if there is no answer."""
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                data = b"" if body is None else json.dumps(body).encode()
                head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
                head += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
                writer.write(head.encode() + data)
                answer = await reader.read()
            finally:
                writer.close()
        if not answer:
            raise EOFError("no answer")
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), rest.decode()

    async def get(self, path):
        status, text = await self.request("GET", path)
        if status != 200:
            raise Failed(f"GET {path} at {self.name} is answered with {status}: {text}")
        return json.loads(text)

    async def is_ready(self):
        try:
            return (await self.request("GET", "/readyz", deadline=2))[0] == 200
        except (OSError, EOFError, TimeoutError):
            return False

    async def leader(self):
        """Returns the name of the node that leads, as far as this one knows."""
        return (await self.get(f"{BASE}/cluster"))["leader"]


async def until(what, condition, deadline=SOON_S):
    """Waits until something is so. Returns the seconds that it took."""
    began = time.monotonic()
    while not await condition():
        if time.monotonic() - began > deadline:
            raise Failed(f"not within {deadline} s: {what}")
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def ready(nodes):
    async def are_ready():
        return all([await node.is_ready() for node in nodes])

    return await until(f"{[node.name for node in nodes]} are ready", are_ready)


class Connection:
    """One HTTP connection that stays open, to one node after the other."""

    def __init__(self, nodes, first):
        self.nodes, self.at, self.reader, self.writer = nodes, first, None, None

    async def post(self, path, body, headers, deadline):
        async with asyncio.timeout(deadline):
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.nodes[self.at].port)
            data = json.dumps(body).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
            self.writer.write(head.encode() + data)
            answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            length = int(re.search(r"(?i)content-length: *(\d+)", answer)[1])
            return int(answer.split()[1]), json.loads(await self.reader.readexactly(length))

    async def until_answered(self, path, body, headers):
        """Sends it again and again, at one node after the other, until it is accepted."""
        while True:
            try:
                status, answer = await self.post(path, body, headers, 20)
            except (OSError, EOFError, TimeoutError):
                status, answer = 503, "no answer"
            if status == 202:
                return answer
            if status not in (207, 409, 503):
                raise Failed(f"a request is answered with {status}: {answer}")
            self.next()
            await asyncio.sleep(0.05)

    def next(self):
        """Goes on at the next node."""
        if self.writer is not None:
            self.writer.close()
        self.writer, self.at = None, (self.at + 1) % len(self.nodes)


class Producer:
    """Sends one message at a time, again and again until it is answered, at whichever node answers."""

    def __init__(self, name, nodes, first, users, random):
        self.name, self.connection, self.users, self.random = name, Connection(nodes, first), users, random
        self.sent, self.again, self.refused, self.latencies = [], 0, 0, []

    async def send(self, id, user):
        began = time.monotonic()
        while True:
            try:
                status, answer = await self.connection.post(
                    f"{BASE}/users/{user}/messages",
                    {"eid": id, "text": "x" * self.random.randrange(200)},
                    [("Content-Type", "application/json"), ("Idempotency-Key", id)],
                    10,
                )
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
                self.again += 1
                self.connection.next()
                await asyncio.sleep(0.05)
                continue
            if status == 202:
                if answer.get("stored") != "cluster" or answer.get("dropped"):
                    raise Failed(f"the receipt of {id}: {answer}")
                self.latencies.append(time.monotonic() - began)
                return
            if status not in (409, 503):
                raise Failed(f"{id} is answered with {status}: {answer}")
            self.refused += 1
            self.connection.next()
            await asyncio.sleep(0.05)

    async def run(self, count, stop=None):
        while (stop is None or not stop.is_set()) and (count is None or count > 0):
            user, id = self.random.choice(self.users), f"{self.name}.{len(self.sent) + 1}"
            await self.send(id, user)
            self.sent.append((user, id))
            count = None if count is None else count - 1
        self.connection.next()


class Device:
    """One device of a user. It connects to one node after the other, and goes on after what it has read."""

    def __init__(self, user, nodes, first, random, silence_s=3):
        self.user, self.nodes, self.at, self.random, self.silence_s = user, nodes, first, random, silence_s
        self.epoch, self.cursor, self.got, self.failure = None, 0, {}, None
        self.socket, self.connects, self.greeted, self.resumed = None, 0, asyncio.Event(), 0

    async def run(self):
        try:
            while True:
                try:
                    await self.follow()
                except (OSError, EOFError, WebSocketException, TimeoutError):
                    self.at = (self.at + self.random.randrange(1, len(self.nodes))) % len(self.nodes)
                    await asyncio.sleep(self.random.uniform(0.05, 0.3))
        except Failed as failed:
            self.failure = failed

    async def follow(self):
        node = self.nodes[self.at]
        url = f"ws://127.0.0.1:{node.port}{BASE}/ws/{self.user}"
        # A server that is stopped, and not dead, is noticed by its silence.
        pings = {"ping_interval": self.silence_s, "ping_timeout": self.silence_s}
        async with connect(url, subprotocols=["signalpost.v1"], proxy=None, open_timeout=10, **pings) as socket:
            self.socket, self.connects = socket, self.connects + 1
            hello = json.loads(await asyncio.wait_for(socket.recv(), 10))
            if self.epoch is None:
                self.epoch = hello["data"]["epoch"]
            else:
                await socket.send(json.dumps({"type": "resume", "epoch": self.epoch, "seq": self.cursor}))
            self.greeted.set()
            while True:
                frame = json.loads(await socket.recv())
                if frame["type"] == "resume":
                    if not frame["data"]["recovered"]:
                        raise Failed(f"{self.user} at {node.name} is not recovered after {self.epoch}.{self.cursor}: {hello} {frame}")
                    self.resumed += 1
                    continue
                if frame["type"] != "message":
                    continue
                seq, id = frame["seq"], frame["data"]["eid"]
                if seq <= self.cursor:
                    if self.got.get(seq) != id:
                        raise Failed(f"{self.user}: seq {seq} is {id}, and was {self.got.get(seq)}")
                    continue
                self.cursor, self.got[seq] = seq, id
                if self.random.random() < 0.3:
                    await socket.send(json.dumps({"type": "ack", "seq": seq}))


def check(users, producers, devices):
    """Compares what every device got with what was answered: each message once, in the same order on all devices of a user."""
    expected = {user: {} for user in users}
    for producer in producers:
        for user, id in producer.sent:
            expected[user].setdefault(producer.name, []).append(id)
    for device in devices:
        if device.failure:
            raise device.failure
        ids = [device.got[seq] for seq in sorted(device.got)]
        if len(ids) != len(set(ids)):
            raise Failed(f"{device.user} got twice: {sorted(id for id in ids if ids.count(id) > 1)[:5]}")
        found = {}
        for id in ids:
            found.setdefault(id.rsplit(".", 1)[0], []).append(id)
        for producer in found.keys() | expected[device.user].keys():
            mine, wanted = found.get(producer, []), expected[device.user].get(producer, [])
            if mine != wanted:
                lost, unknown = [id for id in wanted if id not in mine], [id for id in mine if id not in wanted]
                raise Failed(f"{device.user} at node{device.at}: lost {lost[:5]}, unknown {unknown[:5]}, or in another order")
    by_user = {}
    for device in devices:
        first = by_user.setdefault(device.user, device)
        if device.got != first.got or device.epoch != first.epoch:
            raise Failed(f"two devices of {device.user} have different seqs or epochs")


def missing(users, producers, devices):
    """Returns how many messages have not come yet."""
    sent = {user: 0 for user in users}
    for producer in producers:
        for user, _ in producer.sent:
            sent[user] += 1
    return sum(max(0, sent[device.user] - len(device.got)) for device in devices if device.failure is None)
