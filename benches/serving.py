"""A server at a free port, and clients that write each message by hand, in one piece: the same at each run, and they cost little."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Under valgrind a server is slow to stop.
STOP_DEADLINE_S = 120


@contextlib.contextmanager
def serving(server, plugins, environment, before=()):
    """Starts a server with the plugins of a folder, and with these words before the command. Yields its process and its port, and stops it at the
    end."""
    command = [*before, server, "serve", "--listen", "127.0.0.1:0", "--plugins", str(plugins)]
    environment = os.environ | environment | {"SIGNALPOST_LOG_FORMAT": "text"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        listening = (re.search(r"listening on http://127\.0\.0\.1:(\d+)", line) for line in process.stderr)
        port = next((int(found[1]) for found in listening if found), None)
        assert port, "the server did not start"
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        process.wait(STOP_DEADLINE_S)


def websocket(port, path, subprotocol=""):
    """A WebSocket, after the handshake: its socket, and a file that reads it."""
    sock = socket.create_connection(("127.0.0.1", port))
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    head = f"GET /api/pool{path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{subprotocol}"
    sock.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    file = sock.makefile("rb")
    status = file.readline()
    assert b" 101 " in status, status
    while file.readline().strip():
        pass
    return sock, file


def frame(text):
    """A client's text frame, whose mask changes nothing."""
    payload = json.dumps(text).encode()
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + payload


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
