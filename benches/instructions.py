#!/usr/bin/env python3
"""User instructions of one message, counted by callgrind: the same at each run, whatever else the machine does.

Each scenario runs twice on a server of its own, with a number of messages and with more of them; the difference is what a message costs, without
the start and the first ones. A message is posted, in one write, and read before the next one; over a producers' stream, 64 are under way. Needs
valgrind and a release build.

    benches/instructions.py [--only TEXT] target/release/signalpost [another signalpost ...]

With --only, the scenarios whose name has this text.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from serving import ROOT, frame, post, read_message, serving, websocket

# Multiples of what a stream has under way.
FEW, MANY = 192, 3200
UNDER_WAY = 64
MATCH = {"type": "pooling.match.found", "data": {"request_id": 42, "rider_id": "1001", "driver_id": "2002", "pool_id": "p1"}}

# The plugins, the readers, what is posted where. A stream has no path, and its frames are what is posted.
SCENARIOS = {
    "direct": ([], ["1001"], "/api/pool/users/1001/messages", {"type": "hello", "text": "x" * 100}),
    "direct, compact as the folder comes": (["compact"], ["1001"], "/api/pool/users/1001/messages", {"type": "hello", "text": "x" * 100}),
    "routed to two": (["pooling"], ["1001", "2002"], "/api/pool/events", MATCH),
    "direct over a stream": ([], ["1001"], None, {"user": "1001", "message": {"type": "hello", "text": "x" * 100}}),
    "unwanted over a stream": ([], [], None, {"type": "hello", "data": {"text": "x" * 100}}),
    "routed to two over a stream": (["pooling"], ["1001", "2002"], None, MATCH),
    "direct, sampled": ([], ["1001"], "/api/pool/users/1001/messages", {"type": "hello", "text": "x" * 100}),
    "routed to two, sampled": (["pooling"], ["1001", "2002"], "/api/pool/events", MATCH),
    "direct, traces on and not sampled": ([], ["1001"], "/api/pool/users/1001/messages", {"type": "hello", "text": "x" * 100}),
}


def run(server, name, plugins, users, path, body, messages):
    with tempfile.TemporaryDirectory() as folder:
        for plugin in plugins:
            (Path(folder) / f"{plugin}.wasm").write_bytes((ROOT / "plugins" / f"{plugin}.wasm").read_bytes())
        out = Path(folder) / "callgrind.out"
        environment = {"SIGNALPOST_STORE_DURABILITY": os.environ.get("SIGNALPOST_STORE_DURABILITY", "memory")}
        # One worker: how threads share the work is not the same each time.
        environment |= {"SIGNALPOST_WORKER_THREADS": "1", "SIGNALPOST_PLUGINS_WATCH": "false"}
        # The readers here answer no pings.
        environment["SIGNALPOST_SOCKETS_PING_INTERVAL_MS"] = "3600000"
        # A guest is fifty times as slow here.
        environment["SIGNALPOST_LIMITS_CALL_DEADLINE_MS"] = environment["SIGNALPOST_LIMITS_CONFIGURE_DEADLINE_MS"] = "60000"
        environment |= traces(name)
        environment["SIGNALPOST_PLUGINS_CACHE_DIR"] = f"{folder}/compiled"
        # Compiled here, since valgrind does not follow the child that would compile.
        check = [server, "check", "--plugins", folder]
        subprocess.run(check, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--smc-check=all-non-file"]
        with serving(server, folder, environment, valgrind) as (_, port):
            readers = [websocket(port, f"/ws/{user}")[1] for user in users]
            if path is None:
                stream(port, body, readers, messages)
            else:
                posts(port, path, body, readers, messages)
        return int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.M).group(1))


def posts(port, path, body, readers, messages):
    producer = socket.create_connection(("127.0.0.1", port))
    for _ in range(messages):
        post(producer, path, body)
        for file in readers:
            assert read_message(file)


def stream(port, body, readers, messages):
    sock, answers = websocket(port, "/publish", "Sec-WebSocket-Protocol: signalpost.publish.v1\r\n")
    assert b"hello" in read_message(answers)
    for _ in range(messages // UNDER_WAY):
        sock.sendall(frame(body) * UNDER_WAY)
        for _ in range(UNDER_WAY):
            answer = json.loads(read_message(answers))
            assert "status" not in answer, answer
            for file in readers:
                assert read_message(file)


def traces(name):
    """Settings for a scenario with traces: a collector that is not there, since what sends spans is not what they cost a message."""
    if "sampled" not in name:
        return {}
    on = {"SIGNALPOST_TRACES_ENDPOINT": "http://127.0.0.1:9/", "SIGNALPOST_TRACES_QUEUE_MAX": "100000", "SIGNALPOST_TRACES_INTERVAL_MS": "3600000"}
    on |= {"SIGNALPOST_TRACES_BATCH_MAX": "100000", "SIGNALPOST_TRACES_DEADLINE_MS": "1000"}
    return on if "not sampled" in name else on | {"SIGNALPOST_TRACES_SAMPLE_RATIO": "1"}


def main():
    arguments = sys.argv[1:]
    only = arguments.pop(arguments.index("--only") + 1) if "--only" in arguments else ""
    servers = [argument for argument in arguments if argument != "--only"] or [ROOT / "target/release/signalpost"]
    for name, scenario in SCENARIOS.items():
        if only not in name:
            continue
        for server in servers:
            try:
                few, many = (run(server, name, *scenario, messages) for messages in (FEW, MANY))
            except (AssertionError, OSError, http.client.HTTPException, subprocess.CalledProcessError) as error:
                # A policy's call that outlasts two milliseconds reads a clock that valgrind does not map.
                print(f"{name}: not counted, {error}; try on a machine with nothing else to do ({server})", flush=True)
                continue
            print(f"{name}: {(many - few) / (MANY - FEW):,.0f} instructions a message ({server})", flush=True)


if __name__ == "__main__":
    main()
