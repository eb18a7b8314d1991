"""Processes that the tests start, on free ports of this machine, and what they wait for."""

import asyncio
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import websockets.asyncio.client

ROOT = Path(__file__).parents[3]
BINARY = os.environ["SERVER_UNDER_TEST"]

# Whatever must come comes within this time, also on a busy machine.
SOON_S = 30
# How long a test looks for something that must not come.
NEVER_S = 0.5


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Process:
    """A process whose output goes to a file. It is ended with the block."""

    def __init__(self, command, cwd=None, environment=None):
        self.output = tempfile.TemporaryFile()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SIGNALPOST_")}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=kept | (environment or {}), stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.output.close()

    def said(self):
        size = os.fstat(self.output.fileno()).st_size
        return os.pread(self.output.fileno(), size, 0).decode(errors="replace")

    def waits(self, pattern):
        ends = time.monotonic() + SOON_S
        while not (found := re.search(pattern, said := self.said())):
            if self.process.poll() is not None or time.monotonic() > ends:
                self.__exit__()
                raise AssertionError(f"it did not say {pattern!r}, but:\n{said}")
            time.sleep(0.02)
        return found

    def stop(self):
        """Ends it as an operator does, and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SOON_S)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Server(Process):
    """Signalpost with the bundled policies. Settings are given as variables; without a port it has a free one."""

    def __init__(self, port=0, **settings):
        environment = {f"SIGNALPOST_{name.upper()}": value for name, value in settings.items()}
        # What it stores is not the user's, and not another server's.
        self.state = tempfile.TemporaryDirectory()
        environment["XDG_STATE_HOME"] = self.state.name
        command = [BINARY, "serve", "--listen", f"127.0.0.1:{port}", "--plugins", str(ROOT / "plugins")]
        super().__init__(command, environment=environment | {"SIGNALPOST_LOG_FORMAT": "text"})
        self.url = self.waits(r"listening on (http://\S+)")[1]
        self.port = int(re.search(r":(\d+)", self.url)[1])

    def __exit__(self, *_):
        super().__exit__()
        self.state.cleanup()

    def ask(self, path, method="GET"):
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method=method), timeout=SOON_S) as answer:
            return json.load(answer)

    def sessions(self, user):
        return len(self.ask(f"/users/{user}")["sessions"])

    def waits_for_sessions(self, user, count):
        ends = time.monotonic() + SOON_S
        while self.sessions(user) != count:
            assert time.monotonic() < ends, f"user {user} has {self.sessions(user)} sessions, not {count}"
            time.sleep(0.02)


class App(Process):
    """An application under uvicorn."""

    def __init__(self, folder, environment=None, command="uvicorn main:app", port=None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            [sys.executable, "-m", *command.split(), "--port", str(self.port)],
            cwd=folder,
            environment={"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(folder)} | (environment or {}),
        )
        workers = int((re.search(r"--workers (\d+)", command) or [0, "1"])[1])
        self.waits(r"(?s)" + "Application startup complete.*" * workers)

    def post(self, path):
        """Posts on a connection of its own, so that any worker may take it."""
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method="POST"), timeout=SOON_S) as answer:
            assert answer.status == 200, answer.status


def connect(port, user, **options):
    """Opens a client's socket, as the page of a rider does."""
    options = {"open_timeout": SOON_S, "close_timeout": SOON_S, "proxy": None} | options
    return websockets.asyncio.client.connect(f"ws://127.0.0.1:{port}/api/pool/ws/{user}", **options)


async def receive(client):
    return await asyncio.wait_for(client.recv(), SOON_S)


async def is_silent(client):
    try:
        found = await asyncio.wait_for(client.recv(), NEVER_S)
    except TimeoutError:
        return
    raise AssertionError(f"there is a message: {found!r}")


async def closed(client):
    """Returns the code and the reason with which a client is closed."""
    await asyncio.wait_for(client.wait_closed(), SOON_S)
    return client.close_code, client.close_reason


class Fake:
    """A server that answers each request with the next of its answers, and notes what it was asked."""

    def __init__(self, answers):
        self.answers = list(answers)
        self.requests = []

    async def handle(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append((lines[0], headers, body))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    break
                if answer is ...:
                    await asyncio.sleep(SOON_S)
                status, more, body = answer
                extra = "".join(f"{name}: {value}\r\n" for name, value in more.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{extra}content-length: {len(body.encode())}\r\n\r\n{body}".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def fake(*answers):
    """Yields a fake server and its address. An answer is a status, headers and a body; `None` is a lost connection, and `...` is silence."""
    made = Fake(answers)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    try:
        yield made, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/pool"
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None


# The page that says how an application moves. The tests do what it says.
PAGE = (ROOT / "docs/migrate.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)


def section(title):
    """Returns the blocks of a section, each with its language, its file and its text."""
    return BLOCK.findall(PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0])


def write(folder, title):
    """Writes the files of a section, and changes those of which it has a difference."""
    for language, name, text in section(title):
        if language == "python":
            (folder / name).write_text(text, encoding="utf-8")
        elif language == "diff":
            file = folder / name
            source = file.read_text(encoding="utf-8")
            old = "".join(line[1:] for line in text.splitlines(keepends=True) if line[0] in "- ")
            new = "".join(line[1:] for line in text.splitlines(keepends=True) if line[0] in "+ ")
            assert source.count(old) == 1, f"{name} doesn't have once:\n{old}"
            file.write_text(source.replace(old, new), encoding="utf-8")


def commands(title):
    return [line[2:] for language, _, text in section(title) if language == "console" for line in text.splitlines() if line.startswith("$ ")]


BEGINS, IMPORTS, PROXY, EVENTS = "Where it begins", "1. Another import", "2. The proxy points at Signalpost", "3. Events instead of messages"
UVICORN = commands(BEGINS)[0]


def application(folder, *titles):
    """Writes the application as it is after these sections."""
    for title in (BEGINS, *titles):
        write(folder, title)
    return folder


@contextmanager
def without_resource_warnings():
    """Leaves out the warnings about sockets that a test leaves open on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
