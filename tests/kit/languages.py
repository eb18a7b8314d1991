"""The same policies in each language: built from source, with the same fixtures, on a real server, and what each costs.

usage: tests/kit/languages.py path/to/signalpost [rust js python c]

The routing policy is plugins/examples/match, the formatting policy what `plugin new` writes. The table is Markdown.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "plugins/examples/match"
SOURCES = {"rust": ("match.rs", "src/lib.rs"), "js": ("match.js", "policy.js"), "python": ("match.py", "policy.py"), "c": ("match.c", "policy.c")}
# The folder of a language's tools in a project, and what installs them.
TOOLS = {
    "js": ("node_modules", "npm install --silent --no-audit --no-fund"),
    "python": (".venv", "python3 -m venv .venv && .venv/bin/pip install -q componentize-py==0.25.1"),
}
DATA = {"request_id": 42, "rider_id": 1001, "driver_id": "d-7", "pool_id": 7, "text": "At the gate"}
MATCH = {
    "type": "pooling_match",
    "request_id": 42,
    "status": "matched",
    "details": "You have been matched for a pooling request!",
    "rider_id": 1001,
    "driver_id": "d-7",
    "pool_id": 7,
    "text": "At the gate",
}
SOON_S = 60

# What is larger than the default is made anew for each call: an interpreter wants more.
ENVIRONMENT = os.environ | {"SIGNALPOST_LIMITS_INSTANCE_KEPT_BYTES_MAX": str(64 << 20), "SIGNALPOST_LISTEN": "127.0.0.1:0", "SIGNALPOST_STORE_DURABILITY": "memory"}


def main(signalpost, *languages):
    signalpost = Path(signalpost).resolve()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # What the plugins share is compiled once, for a plugin and for this machine.
        ENVIRONMENT.setdefault("CARGO_TARGET_DIR", f"{folder}/target")
        for language in languages or SOURCES:
            work = Path(folder, language)
            work.mkdir()
            seconds = build(signalpost, language, work)
            serves(signalpost, language, work)
            rows += table(signalpost, language, work, seconds)
    print("\n| | component | build after an edit | compiled by the server | instance | memory | `route`, p50 | `format`, p50 |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def build(signalpost, language, work):
    """Makes both projects, and builds and tests them. Returns the seconds that a build takes after an edit."""
    for name, role in (("plain", "formatting"), ("match", "routing")):
        run([signalpost, "plugin", "new", name, "--lang", language, "--role", role], work)
        if name == "match":
            source, into = SOURCES[language]
            shutil.copy(EXAMPLE / source, work / name / into)
            shutil.rmtree(work / name / "fixtures")
            shutil.copytree(EXAMPLE / "fixtures", work / name / "fixtures")
        if language in TOOLS:
            tools, install = TOOLS[language]
            # The second project needs the same tools.
            if name == "plain":
                run(install, work / name, shell=True)
            else:
                (work / name / tools).symlink_to(work / "plain" / tools)
        run([signalpost, "plugin", "test", name], work)
    with open(work / "match" / SOURCES[language][1], "a", encoding="utf-8") as source:
        source.write("\n")
    started = time.monotonic()
    run([signalpost, "plugin", "build", "match"], work)
    return time.monotonic() - started


def serves(signalpost, language, work):
    """A server with both takes a match to the rider as it is, and to the driver as text."""
    (work / "served").mkdir()
    for name in ("match", "plain"):
        shutil.copy(work / f"{name}.wasm", work / "served")
    command = [signalpost, "serve", "--plugins", "served"]
    server = subprocess.Popen(command, cwd=work, env=ENVIRONMENT | {"SIGNALPOST_LOG_FORMAT": "json"}, stderr=subprocess.PIPE, text=True)
    listeners = []
    try:
        log = (json.loads(line)["message"] for line in server.stderr)
        address = next((line.removeprefix("listening on ") for line in log if line.startswith("listening on ")), None)
        assert address, f"{language}: the server did not start"
        sockets = address.replace("http", "ws", 1)
        for user, attribute in (("1001", "format=json"), ("d-7", "format=text")):
            command = [signalpost, "listen", user, "--url", sockets, "--json", "--count", "1", "--attribute", attribute]
            listeners.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        receipt = json.loads(run([signalpost, "send", "--url", address, "--json", "pooling.match.found", json.dumps(DATA)], work))
        assert (receipt["recipients"], receipt["posted"]) == (2, 2), f"{language}: {receipt}"
        rider, driver = (listener.communicate(timeout=SOON_S)[0].rstrip("\n") for listener in listeners)
        assert json.loads(rider) == MATCH, f"{language}: the rider reads {rider}"
        assert driver == "At the gate", f"{language}: the driver reads {driver}"
    finally:
        for listener in listeners:
            listener.kill()
        server.send_signal(signal.SIGTERM)
        stopped = server.wait(timeout=SOON_S)
    assert stopped == 0, f"{language}: the server exits with {stopped}"
    print(f"ok  {language}: fixtures, and a match on a server")


def table(signalpost, language, work, seconds):
    """The language's row, and one of the same policies without WebAssembly where they can be built so."""
    bench = lambda name: json.loads(run([signalpost, "plugin", "bench", name, "--json"], work))
    routing, formatting = bench("match"), bench("plain")
    fixture = routing["fixtures"][0]
    steps = [fixture["steps"][0], formatting["fixtures"][0]["steps"][0]]
    cells = [
        f"`{language}`",
        f"{routing['bytes'] / 1e6:.2f} MB",
        f"{seconds:.1f} s",
        f"{routing['compile_ns'] / 1e9:.2f} s",
        f"{fixture['instance_ns'] / 1e3:.0f} µs",
        f"{fixture['instance_kept_bytes'] / 2**20:.1f} MiB",
        *(f"{step['p50_ns'] / 1e3:.1f} µs" for step in steps),
    ]
    rows = [cells]
    if language == "rust":
        rows.append(["`rust`, native", *["—"] * 5, *(f"{step['native_p50_ns'] / 1e3:.1f} µs" for step in steps)])
    return [f"| {' | '.join(cells)} |" for cells in rows]


def run(command, folder, **how):
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, **how)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


main(*sys.argv[1:])
