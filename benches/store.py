#!/usr/bin/env python3
"""What lasting costs: the same load on servers that differ in `store.durability` only, in turns, so that a busy machine slows all of them.

    benches/store.py SIGNALPOST SIGNALPOST_LOAD [--rounds 3] [--seconds 3]

Prints, for each scenario, the median of the server's processor time for each delivery, of the deliveries per second and of the latency, and
the ratios to `memory`. Every message is checked; the program fails if one is lost.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

MODES = ["memory", "os", "fsync"]
SCENARIOS = {"direct": [], "routed": [], "batch": [], "open-loop": ["--rate", "2000"]}
PORT = 18_911


def serve(binary, folder, mode):
    """Returns a server that is ready."""
    environment = os.environ | {
        "SIGNALPOST_STORE_DURABILITY": mode,
        "SIGNALPOST_STORE_DIR": f"{folder}/store",
        "SIGNALPOST_SOCKETS_HANDSHAKES_PER_SECOND_MAX": "1000000",
        "SIGNALPOST_LOG_LEVEL": "warn",
    }
    plugins = Path(__file__).resolve().parents[1] / "plugins"
    server = subprocess.Popen([binary, "serve", "--listen", f"127.0.0.1:{PORT}", "--plugins", plugins], env=environment)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=1).read()
            return server
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise SystemExit("the server did not start")


def run(binary, load, mode, scenario, options, seconds):
    """Returns what one run measured: processor time in µs, deliveries per second, p50 and p99 in ms."""
    with tempfile.TemporaryDirectory() as folder:
        server = serve(binary, folder, mode)
        try:
            command = [load, scenario, *options, "--url", f"http://127.0.0.1:{PORT}/api/pool", "--seconds", str(seconds), "--pid", str(server.pid), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 10 + 60, check=False)
            report = json.loads(done.stdout)
            if done.returncode:
                raise SystemExit(f"{scenario} with {mode}: {report}")
        finally:
            server.terminate()
            server.wait()
        latency = report["latency"]
        return report["server"]["processor_us_per_delivery"], report["deliveries_per_second"], latency["p50_us"] / 1000, latency["p99_us"] / 1000


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("signalpost")
    parser.add_argument("load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    arguments = parser.parse_args()
    print("| scenario | store | µs of CPU for each delivery | deliveries/s | p50 ms | p99 ms | CPU beside memory |")
    print("|---|---|---|---|---|---|---|")
    for scenario, options in SCENARIOS.items():
        measured = {mode: [] for mode in MODES}
        for _ in range(arguments.rounds):
            for mode in MODES:
                measured[mode].append(run(arguments.signalpost, arguments.load, mode, scenario, options, arguments.seconds))
        base = statistics.median(cpu for cpu, *_ in measured["memory"])
        for mode in MODES:
            cpu, rate, p50, p99 = (statistics.median(values) for values in zip(*measured[mode]))
            print(f"| {scenario} | {mode} | {cpu:.1f} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {cpu / base:.2f} × |", flush=True)


if __name__ == "__main__":
    main()
