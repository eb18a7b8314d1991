#!/usr/bin/env python3
"""What lasting costs: servers that differ in `store.durability` only, in turns, so that a busy machine slows all of them. Only ratios count.

    benches/durability.py [SIGNALPOST [SIGNALPOST_LOAD]] [--rounds 5] [--messages 2000] [--seconds 3] [--idle 5000] [--folder DIR]

Of each round come the processor time of a message that is posted and read before the next one, by servers with one serving thread; how many events
a second are answered in batches of a hundred from 32 producers; the time of a delivery at 2,000 messages a second from 64 producers; the median time
of an answer to a single producer, beside what a flush of the same disk takes at that time; and the memory of idle sockets. A figure is the median of
the rounds, with the least and the most in brackets; a ratio is the median of the rounds' ratios. Every message is checked. The stores are in
temporary folders under --folder, whose disk is the one that is measured: a folder in memory has no flushes.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request

from sequential import measure
from serving import ROOT

MODES = ["memory", "os", "fsync"]
PORT = 18_911
# A short frame of the log.
APPEND = b"x" * 300
FLUSHES = 200


def flushes_us(folder):
    """The times in which small appends are on the disk, as each frame of the log is."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        times = []
        for _ in range(FLUSHES):
            began = time.monotonic_ns()
            os.write(file.fileno(), APPEND)
            os.fdatasync(file.fileno())
            times.append((time.monotonic_ns() - began) / 1000)
        return times


def serve(binary, folder, mode):
    """Returns a server that is ready."""
    environment = os.environ | {
        "SIGNALPOST_STORE_DURABILITY": mode,
        "SIGNALPOST_STORE_DIR": f"{folder}/store",
        "SIGNALPOST_SOCKETS_HANDSHAKES_PER_SECOND_MAX": "1000000",
        "SIGNALPOST_LOG_LEVEL": "error",
    }
    server = subprocess.Popen([binary, "serve", "--listen", f"127.0.0.1:{PORT}", "--plugins", ROOT / "plugins"], env=environment)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=1).read()
            return server
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise SystemExit("the server did not start")


def load(arguments, mode, *options, seconds):
    """Returns the generator's report of one run."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        server = serve(arguments.signalpost, folder, mode)
        try:
            command = [arguments.load, *options, "--seconds", str(seconds), "--requests", "100000000"]
            command += ["--url", f"http://127.0.0.1:{PORT}/api/pool", "--pid", str(server.pid), "--json"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds * 10 + 60, check=False)
            report = json.loads(done.stdout)
            if done.returncode:
                raise SystemExit(f"{options} with {mode}: {report}")
            return report
        finally:
            server.terminate()
            server.wait()


def one_round(arguments):
    """Measures everything once. Returns a number for each name and mode."""
    found = {}
    for mode in MODES:
        before = flushes_us(arguments.folder)
        found["direct", mode], found["answer", mode] = measure(arguments.signalpost, mode, "direct", arguments.messages, arguments.folder)
        found["flush", mode] = statistics.median(before + flushes_us(arguments.folder))
    for mode in MODES:
        found["routed", mode], _ = measure(arguments.signalpost, mode, "routed to two", arguments.messages, arguments.folder)
    for mode in MODES:
        batch = load(arguments, mode, "batch", "--producers", "32", seconds=arguments.seconds)
        found["batch", mode] = batch["events"] / batch["seconds"]
    for mode in MODES:
        paced = load(arguments, mode, "open-loop", "--rate", "2000", "--producers", "64", seconds=arguments.seconds)
        found["p50", mode], found["p99", mode] = (paced["latency"][quantile] for quantile in ("p50_us", "p99_us"))
    for mode in MODES:
        idle = load(arguments, mode, "idle", "--users", str(arguments.idle), seconds=1)
        found["idle", mode] = idle["server"]["resident_kib_per_socket"]
    return found


def spread(values, digits):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("signalpost", nargs="?", default=ROOT / "target/release/signalpost")
    parser.add_argument("load", nargs="?", default=ROOT / "target/release/signalpost-load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--folder", default=ROOT)
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        rounds.append(one_round(arguments))
        print(f"round {number + 1} of {arguments.rounds} is done", flush=True)

    def values(name, mode):
        return [found[name, mode] for found in rounds]

    def ratios(name, mode, to, to_mode):
        return spread([found[name, mode] / found[to, to_mode] for found in rounds], 2)

    rows = [
        ("processor time of a direct message, µs", "direct", 1),
        ("of an event for two users of a group", "routed", 1),
        ("events/s from 32 producers in batches of 100, each to two users", "batch", 0),
        ("2,000 messages/s from 64 producers: p50 of a delivery, µs", "p50", 0),
        ("p99 of a delivery, µs", "p99", 0),
        ("one producer: p50 of an answer, µs", "answer", 0),
        ("memory of an idle socket, KiB", "idle", 2),
    ]
    print("| | `memory` | `os` | to `memory` | `fsync` | to `memory` |\n|---|---|---|---|---|---|")
    for title, name, digits in rows:
        memory, system, disk = (spread(values(name, mode), digits) for mode in MODES)
        print(f"| {title} | {memory} | {system} | {ratios(name, 'os', name, 'memory')} | {disk} | {ratios(name, 'fsync', name, 'memory')} |")
    print(f"\nA flush takes {spread(values('flush', 'fsync'), 0)} µs; an answer in `fsync` takes {ratios('answer', 'fsync', 'flush', 'fsync')} flushes.")


if __name__ == "__main__":
    main()
