#!/usr/bin/env python3
"""Processor time of a server for one message, posted and read before the next one, for several servers in turns. It needs no generator, and since
only the server's time counts and rounds alternate, a busy machine changes the ratios little.

    benches/sequential.py target/release/signalpost [another signalpost ...] [--rounds 7] [--messages 4000]

Each server runs with everything in memory, with a store (`os`), and with the bundled policy compact. Prints the median and the least of the rounds.
"""

import argparse
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path

from instructions import SCENARIOS
from serving import ROOT, post, read_message, serving, websocket

DIRECT, COMPACT = "direct", "direct, compact as the folder comes"
WAYS = {"memory": ("memory", DIRECT), "os": ("os", DIRECT), "memory, compact": ("memory", COMPACT)}


def processor_time_ns(process):
    """The process's own clock, as clock_getcpuclockid(3) finds it: that of all threads, also of those that have ended."""
    return time.clock_gettime_ns(~process.pid << 3 | 2)


def measure(server, durability, scenario, messages, folder=None):
    """Returns the processor time of a message, and the median time of an answer, both in µs. The store is in `folder`, or in a temporary one."""
    plugins, users, path, body = SCENARIOS[scenario]
    with tempfile.TemporaryDirectory(dir=folder) as folder:
        (Path(folder) / "plugins").mkdir()
        for plugin in plugins:
            shutil.copy(ROOT / f"plugins/{plugin}.wasm", f"{folder}/plugins")
        environment = {"SIGNALPOST_STORE_DURABILITY": durability, "SIGNALPOST_STORE_DIR": f"{folder}/store"}
        # One worker: how threads share the work is not the same each time.
        environment |= {"SIGNALPOST_WORKER_THREADS": "1"}
        with serving(server, f"{folder}/plugins", environment) as (process, port):
            readers = [websocket(port, f"/ws/{user}")[1] for user in users]
            producer = socket.create_connection(("127.0.0.1", port))

            def send(count):
                answers = []
                for _ in range(count):
                    began = time.monotonic_ns()
                    post(producer, path, body)
                    answers.append((time.monotonic_ns() - began) / 1000)
                    for reader in readers:
                        read_message(reader)
                return statistics.median(answers)

            send(messages // 8)
            before = processor_time_ns(process)
            answer = send(messages)
            return (processor_time_ns(process) - before) / messages / 1000, answer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("servers", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--messages", type=int, default=4000)
    arguments = parser.parse_args()
    runs = [(server, way) for server in arguments.servers for way in WAYS]
    times = {run: [] for run in runs}
    for _ in range(arguments.rounds):
        for server, way in runs:
            times[server, way].append(measure(server, *WAYS[way], arguments.messages)[0])
    for (server, way), measured in times.items():
        print(f"{way}: median {statistics.median(measured):.1f} µs, least {min(measured):.1f} ({server})")


if __name__ == "__main__":
    main()
