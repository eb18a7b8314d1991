#!/usr/bin/env python3
"""Records 100,000 calls of a running server, and replays them: by the same component without a difference, and by one with a planted difference in
one call of a thousand, which finds exactly those. Says how long both take.

    benches/recorded.py target/release/signalpost [calls]
"""

import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serving import ROOT, serving

BATCH = 100
ONE_IN = 1000
PLANTED = (b"trip_started", b"trip_startex")


def event(number):
    """One of a ride's events; one in a thousand is of the type whose message is another one in the other component."""
    pool = number // 8
    rider, driver, of_pool = 1000 + pool % 5000, 9000 + pool % 3000, {"request_id": number, "pool_id": pool}
    kinds = [
        ("pooling.match.found", of_pool | {"rider_id": rider, "driver_id": driver}),
        ("pooling.match.accepted", of_pool | {"by": driver}),
        ("pooling.driver.location", {"pool_id": pool, "driver_id": driver, "lat": 52.5 + number % 7 / 100, "lon": 13.4}),
        ("pooling.driver.location", {"pool_id": pool, "driver_id": driver, "lat": 52.5, "lon": 13.4}),
        ("pooling.driver.arriving", {"pool_id": pool, "driver_id": driver, "eta_s": number % 300}),
        ("pooling.chat.message", {"pool_id": pool, "from": rider, "text": f"message {number}"}),
        ("pooling.fare.updated", {"pool_id": pool, "shares": "none"}),
        ("pooling.trip.completed", of_pool | {"by": driver}),
    ]
    kind, data = kinds[number % 8]
    if number % ONE_IN == 0:
        kind, data = "pooling.trip.started", of_pool | {"by": driver}
    return {"specversion": "1.0", "id": str(number), "source": "/recorded", "type": kind, "data": data}


def replay(server, recording, component):
    """The exit code, the output and the seconds."""
    began = time.monotonic()
    command = [server, "replay", recording, "--policy", component, "--show", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, time.monotonic() - began


def main():
    server = str(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/signalpost").resolve())
    calls = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    assert calls % BATCH == 0
    with tempfile.TemporaryDirectory() as folder:
        plugins = Path(folder) / "plugins"
        plugins.mkdir()
        component = plugins / "pooling.wasm"
        component.write_bytes((ROOT / "plugins/pooling.wasm").read_bytes())
        other, recording = Path(folder) / "other.wasm", Path(folder) / "calls.jsonl"
        assert PLANTED[0] in component.read_bytes()
        other.write_bytes(component.read_bytes().replace(*PLANTED))
        environment = {"SIGNALPOST_STORE_DURABILITY": "memory"}
        # Nothing may be lost, whatever else the machine does.
        environment |= {"SIGNALPOST_RECORDINGS_ENTRIES_MAX": "131072", "SIGNALPOST_RECORDINGS_BYTES_MAX": str(1 << 30)}
        with serving(server, plugins, environment) as (_, port):
            base = f"http://127.0.0.1:{port}/api/pool"
            with recording.open("wb") as out:
                command = [server, "record", "--policy", "pooling", "--count", str(calls), "--minutes", "60", "--url", base]
                recorder = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
            producer = http.client.HTTPConnection("127.0.0.1", port)
            while True:
                producer.request("GET", "/metrics")
                if "signalpost_recorders 1" in producer.getresponse().read().decode():
                    break
                time.sleep(0.05)
            began = time.monotonic()
            for first in range(0, calls, BATCH):
                body = json.dumps([event(number) for number in range(first, first + BATCH)])
                producer.request("POST", "/api/pool/events", body, {"Content-Type": "application/cloudevents-batch+json"})
                answer = producer.getresponse()
                text = answer.read()
                assert answer.status == 202, text
            said = recorder.communicate(timeout=600)[1].strip()
            print(f"{said} in {time.monotonic() - began:.1f} s, {recording.stat().st_size / 1e6:.0f} MB")
        lines = recording.read_text().splitlines()
        assert json.loads(lines[-1])["end"] == {"reason": "count", "calls": calls, "lost": 0}, lines[-1]
        planted = {number for number, line in enumerate(lines, 1) if '"type":"pooling.trip.started"' in line}
        assert len(planted) == calls // ONE_IN, len(planted)

        code, text, took = replay(server, recording, component)
        assert code == 0 and f"{calls} same, 0 differ, 0 inconclusive" in text, text[-2000:]
        print(f"the same component: {calls} same, in {took:.1f} s")
        code, text, took = replay(server, recording, other)
        found = {int(number) for number in re.findall(r"^line (\d+):", text, re.M)}
        assert code == 1 and found == planted, (len(found), len(planted), text[-2000:])
        print(f"one with a planted difference: {len(found)} differ, exactly those, in {took:.1f} s")


if __name__ == "__main__":
    main()
