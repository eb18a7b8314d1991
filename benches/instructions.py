#!/usr/bin/env python3
"""User instructions of one message, counted by callgrind: the same at each run, whatever else the machine does.

Each scenario runs twice on a server of its own, with a number of messages and with more of them; the difference is what a message costs, without
the start and the first ones. A message is posted, in one write, and read before the next one. Needs valgrind and a release build.

    benches/instructions.py target/release/signalpost [another signalpost ...]
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEW, MANY = 200, 3200
START_DEADLINE_S = 120
MATCH = {"type": "pooling.match.found", "data": {"request_id": 42, "rider_id": "1001", "driver_id": "2002", "pool_id": "p1"}}

# The plugins, the readers, what is posted where.
SCENARIOS = {
    "direct": ([], ["1001"], "/api/pool/users/1001/messages", {"type": "hello", "text": "x" * 100}),
    "direct, compact as the folder comes": (["compact"], ["1001"], "/api/pool/users/1001/messages", {"type": "hello", "text": "x" * 100}),
    "routed to two": (["pooling"], ["1001", "2002"], "/api/pool/events", MATCH),
}


def reader(port, user):
    """A WebSocket of a user, after the handshake."""
    sock = socket.create_connection(("127.0.0.1", port))
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    head = f"GET /api/pool/ws/{user} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    sock.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    file = sock.makefile("rb")
    while file.readline().strip():
        pass
    return file


def read_message(file):
    """One frame; a server's are not masked."""
    head = file.read(2)
    assert len(head) == 2 and head[0] & 15 < 8, f"the server closed the socket: {head + file.read1()}"
    length = head[1]
    if length == 126:
        length = int.from_bytes(file.read(2), "big")
    return file.read(length)


def post(sock, path, body):
    """Posts JSON. http.client would write the head and the body apart, and a server that is as slow as this one is woken for each."""
    body = json.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost:{sock.getpeername()[1]}\r\nAccept-Encoding: identity\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n{body}".encode())
    answer = http.client.HTTPResponse(sock, method="POST")
    answer.begin()
    text = answer.read()
    assert answer.status == 202, text


def run(server, plugins, users, path, body, messages):
    with tempfile.TemporaryDirectory() as folder:
        for plugin in plugins:
            (Path(folder) / f"{plugin}.wasm").write_bytes((ROOT / "plugins" / f"{plugin}.wasm").read_bytes())
        out = Path(folder) / "callgrind.out"
        # One worker: how threads share the work is not the same each time.
        environment = os.environ | {"SIGNALPOST_WORKER_THREADS": "1", "SIGNALPOST_LOG_FORMAT": "text", "SIGNALPOST_PLUGINS_WATCH": "false"}
        # The readers here answer no pings.
        environment.setdefault("SIGNALPOST_STORE_DURABILITY", "memory")
        environment["SIGNALPOST_SOCKETS_PING_INTERVAL_MS"] = "3600000"
        # A guest is fifty times as slow here.
        environment["SIGNALPOST_LIMITS_CALL_DEADLINE_MS"] = environment["SIGNALPOST_LIMITS_CONFIGURE_DEADLINE_MS"] = "60000"
        environment["SIGNALPOST_PLUGINS_CACHE_DIR"] = f"{folder}/compiled"
        # Compiled here, since valgrind does not follow the child that would compile.
        subprocess.run([server, "check", "--plugins", folder], env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--smc-check=all-non-file"]
        command += [server, "serve", "--listen", "127.0.0.1:0", "--plugins", folder]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        port = None
        for line in process.stderr:
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
            if found:
                port = int(found.group(1))
                break
        assert port, "the server did not start"
        try:
            readers = [reader(port, user) for user in users]
            producer = socket.create_connection(("127.0.0.1", port))
            for _ in range(messages):
                post(producer, path, body)
                for file in readers:
                    assert read_message(file)
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            process.wait(START_DEADLINE_S)
        return int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.M).group(1))


def main():
    servers = sys.argv[1:] or [ROOT / "target/release/signalpost"]
    for name, scenario in SCENARIOS.items():
        for server in servers:
            try:
                few, many = (run(server, *scenario, messages) for messages in (FEW, MANY))
            except (AssertionError, OSError, http.client.HTTPException) as error:
                # A policy's call that outlasts two milliseconds reads a clock that valgrind does not map.
                print(f"{name}: not counted, {error}; try on a machine with nothing else to do ({server})", flush=True)
                continue
            print(f"{name}: {(many - few) / (MANY - FEW):,.0f} instructions a message ({server})", flush=True)


if __name__ == "__main__":
    main()
