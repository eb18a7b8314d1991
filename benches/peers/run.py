#!/usr/bin/env python3
"""Signalpost beside its peers: what a message, a socket and a reconnect cost, on one core, with every message checked.

Each server is started afresh, pinned to one core, for each scenario and round; `signalpost-load` runs on another core. The rounds are
interleaved, so that a machine that slows down slows all of them. Figures are medians, and a ratio is the median of the ratios to the floor of
the same round. `benches/peers/install` installs the peers that are not in this repository; missing ones are skipped.
"""

import argparse
import atexit
import itertools
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import chart

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
BASE = "/api/pool"
OPEN_FILES_MAX = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
START_DEADLINE_S = 30
STOP_DEADLINE_S = 15
WARM_UP_S = 1
# The share of a core from which on the generator is the bottleneck.
GENERATOR_BUSY = 0.95

# What differs from a server as it comes, for each of them. All have an empty configuration but for this, and one core.
SETTINGS = {
    "floor": "none",
    "original": "uvicorn with --no-access-log --backlog 4096 (its default is 2048, and a line for each request)",
    "ws": "a listen backlog of 4096; no compression, as is its default; bufferutil, as it recommends",
    "signalpost": "handshakes_per_second_max = 1000000: all 5,000 come back three times within a second, from one address; of the bundled policies pooling, where something is formatted compact too",
    "nchan": "worker_processes 1, worker_connections 19000, keepalive_requests 1000000000, access_log off, a listen backlog of 4096, nchan_subscriber_first_message newest: who comes back shall not read again what came before",
    "nats": "no_tls for WebSockets; producers are verbose, so that each PUB is answered by +OK as a POST is by 202",
    "sockudo": "no rate limits, a port of its own for metrics, an app with no limits on connections and events; it ends a producer's connection with each answer",
}
SIGNALPOST_ENVIRONMENT = {
    "SIGNALPOST_SOCKETS_HANDSHAKES_PER_SECOND_MAX": "1000000",
    # As the others: they forget at a restart. What lasting costs has a table of its own in docs/performance.md.
    "SIGNALPOST_STORE_DURABILITY": os.environ.get("SIGNALPOST_STORE_DURABILITY", "memory"),
}
SOCKUDO_ENVIRONMENT = {
    "RATE_LIMITER_ENABLED": "false",
    "SOCKUDO_DEFAULT_APP_ID": "load",
    "SOCKUDO_DEFAULT_APP_KEY": "load",
    "SOCKUDO_DEFAULT_APP_SECRET": "load",
    "SOCKUDO_DEFAULT_APP_MAX_CONNECTIONS": "1000000",
    "SOCKUDO_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SECOND": "1000000000",
    "SOCKUDO_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SECOND": "1000000000",
    "SOCKUDO_DEFAULT_APP_MAX_READ_REQUESTS_PER_SECOND": "1000000000",
}
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
load_module {modules}/ngx_nchan_module.so;
worker_processes 1;
worker_rlimit_nofile {open_files};
events {{ worker_connections 19000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/ws/(.+)$ {{ nchan_subscriber websocket; nchan_channel_id $1; nchan_subscriber_first_message newest; }}
        location ~ ^/pub/(.+)$ {{ nchan_publisher http; nchan_channel_id $1; }}
    }}
}}
"""
NATS = """
listen: "127.0.0.1:{producers}"
websocket {{ listen: "127.0.0.1:{port}", no_tls: true }}
"""

ALL = ["floor", "signalpost", "original", "ws", "nchan", "nats", "sockudo"]
OWN = ["floor", "signalpost", "original", "ws"]
DIRECT = ["--users", "1000", "--producers", "16"]
ROUTED = ["pooling"]
FORMATTED = ["pooling", "compact"]
FAN_OUT = ["fan-out", "--users", "2000", "--producers", "1"]
# Name → the load generator's arguments, the peers that support it, the policies it needs, and the scenario of its floor. `timed` ones last --seconds, after a warm-up.
SCENARIOS = {
    "direct": {"load": ["direct", *DIRECT], "peers": ALL, "timed": True},
    "batch": {"load": ["batch", *DIRECT], "peers": OWN, "timed": True},
    "routed": {"load": ["routed", *DIRECT], "peers": OWN, "timed": True},
    "formatted": {"load": ["formatted", *DIRECT], "peers": ["signalpost"], "policies": FORMATTED, "timed": True, "floor": "routed"},
    "fan-out": {"load": FAN_OUT, "peers": ALL, "timed": True},
    "fan-out-formatted": {"load": [*FAN_OUT, "--query", "format=compact"], "peers": ["signalpost"], "policies": FORMATTED, "timed": True, "floor": "fan-out"},
    # One event at a time: none waits for another, so that no frames of two share a write.
    "fan-out-paced": {"load": [*FAN_OUT, "--rate", "10"], "peers": ALL, "timed": True},
    "open-loop": {"load": ["open-loop", *DIRECT, "--rate", "2000"], "peers": ALL, "timed": True},
    "idle": {"load": ["idle", "--users", "10000", "--seconds", "3"], "peers": ALL},
    "storm": {"load": ["storm", "--users", "5000", "--producers", "16", "--seconds", "60"], "peers": ALL},
    "growth-1000": {"load": ["growth", *DIRECT, "--away", "0"], "peers": ["signalpost"], "timed": True, "floor": "direct"},
    "growth-10000": {"load": ["growth", *DIRECT, "--away", "9000"], "peers": ["signalpost"], "timed": True, "floor": "direct"},
    "growth-100000": {"load": ["growth", *DIRECT, "--away", "99000"], "peers": ["signalpost"], "timed": True, "floor": "direct"},
}


def message(report):
    return report["server"]["processor_us_per_delivery"]


# The figures of each scenario: a title, and the value in the generator's report. The first is the main one.
COST = ("processor time per delivered message, µs", message)
FIGURES = {
    "open-loop": [("p99 at 2,000 messages/s, µs", lambda report: report["latency"]["p99_us"]), COST],
    "idle": [("memory per connection, KiB", lambda report: report["server"]["resident_kib_per_socket"])],
    "storm": [("processor time per reconnect, µs", lambda report: report["server"]["processor_us_per_socket"]), COST],
}


def figures(scenario):
    return FIGURES.get(scenario, [COST])


class Server:
    """A server that was started for one measurement, with all that it has started."""

    def __init__(self, peer, tools, core, policies):
        self.peer, self.tools = peer, tools
        self.folder = Path(tempfile.mkdtemp(prefix=f"peer-{peer}-"))
        self.port, self.producers, metrics = (free_port() for _ in range(3))
        self.url, self.more = f"http://127.0.0.1:{self.port}", []
        environment, directory = dict(os.environ), self.folder
        address = f"127.0.0.1:{self.port}"
        if peer in OWN:
            self.url += BASE
        else:
            self.more = ["--dialect", peer]
        if peer == "floor":
            command = [tools["floor"], address]
        elif peer == "signalpost":
            for policy in policies:
                shutil.copy(ROOT / f"plugins/{policy}.wasm", self.folder)
            command = [tools["signalpost"], "serve", "--listen", address, "--plugins", str(self.folder)]
            environment |= SIGNALPOST_ENVIRONMENT
        elif peer == "original":
            shutil.copy(HERE / "original/server.py", self.folder)
            options = ["--no-access-log", "--log-level", "warning", "--backlog", "4096"]
            command = [tools["original"], "server:app", "--host", "127.0.0.1", "--port", str(self.port), *options]
        elif peer == "ws":
            # It finds its packages beside it.
            shutil.copy(HERE / "ws/server.js", tools["ws"])
            command = ["node", str(Path(tools["ws"], "server.js")), address]
        elif peer == "nchan":
            modules = Path(tools["nchan"]).parents[1] / "lib/nginx/modules"
            text = NGINX.format(folder=self.folder, modules=modules, open_files=OPEN_FILES_MAX, port=self.port)
            command = [tools["nchan"], "-p", str(self.folder), "-c", self.file("nginx.conf", text)]
        elif peer == "nats":
            self.more += ["--publish-at", f"127.0.0.1:{self.producers}"]
            text = NATS.format(port=self.port, producers=self.producers)
            command = [tools["nats"], "--config", self.file("nats.conf", text)]
        elif peer == "sockudo":
            command = [tools["sockudo"]]
            environment |= SOCKUDO_ENVIRONMENT | {"HOST": "127.0.0.1", "PORT": str(self.port), "METRICS_PORT": str(metrics)}
        self.log = self.folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own, so that its children end with it.
                start_new_session=True,
            )

    def __enter__(self):
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text)
        # nginx' workers are nobody where it is started by root.
        self.folder.chmod(0o755)
        return str(path)

    def wait(self):
        until = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"it doesn't listen: {self.log.read_text(errors='replace')[-500:]}")

    def load(self, arguments, seconds, core):
        """The generator's report. Its exit code adds nothing to it."""
        command = ["taskset", "-c", str(core), self.tools["signalpost-load"], *arguments, "--url", self.url, *self.more]
        command += ["--requests", str(10**12), "--pid", str(self.process.pid), "--json"]
        if seconds:
            command += ["--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180 + 2 * (seconds or 60), check=False)
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise RuntimeError(done.stderr.strip()[-500:] or f"signalpost-load ended with {done.returncode}") from None

    def format_calls(self):
        """How often the compact policy was asked."""
        with urllib.request.urlopen(f"{self.url}/policies", timeout=10) as answer:
            policies = json.load(answer)["policies"]
        return next((policy["counters"]["calls"] for policy in policies if policy["name"] == "compact"), 0)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def measure(peer, name, options, tools):
    scenario = SCENARIOS[name]
    arguments = list(scenario["load"])
    if name == "idle" and peer == "signalpost":
        arguments.append("--v1")
    seconds = options.seconds if scenario.get("timed") else None
    try:
        with Server(peer, tools, options.cores[0], scenario.get("policies", ROUTED)) as server:
            if seconds:
                # What is compiled, allocated or learnt once isn't what a message costs.
                server.load(["direct", *DIRECT] if "--away" in arguments else arguments, WARM_UP_S, options.cores[1])
            before = server.format_calls() if peer == "signalpost" else 0
            report = server.load(arguments, seconds, options.cores[1])
            if peer == "signalpost":
                report["format_calls"] = server.format_calls() - before
            return report
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return {"exact": False, "error": str(error)}


def wrong(report):
    """Why a run doesn't count, in a few words; empty where it does."""
    if report["exact"]:
        return ""
    if "error" in report:
        return " ".join(report["error"].split())[:160]
    counts = {name: report[name] for name in ("lost", "doubled", "out_of_order", "wrong_reader", "failed")}
    counts["ended"] = sum(report["closed"].values())
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)


def summary(results, scenario, peer, figure):
    """Median, ratio to the floor, least and most of a figure in all rounds that have it."""
    values = {round: figure(report) for round, report in results[scenario].get(peer, {}).items() if "error" not in report}
    if not values:
        return None
    floor = results.get(SCENARIOS[scenario].get("floor", scenario), {}).get("floor", {})
    ratios = [value / figure(floor[round]) for round, value in values.items() if round in floor and "error" not in floor[round] and figure(floor[round]) > 0]
    return {
        "median": statistics.median(values.values()),
        "ratio": statistics.median(ratios) if ratios else None,
        "least": min(values.values()),
        "most": max(values.values()),
        "exact": all(report["exact"] for report in results[scenario][peer].values()),
    }


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def full_table(results):
    """Everything, a line for each scenario and server."""
    lines = ["| | server | figure | median | × floor | spread | messages/s | p50 µs | p99 µs | p99.9 µs | exact |"]
    lines.append("|" + "---|" * 11)
    for scenario, by_peer in results.items():
        for index, (title, figure) in enumerate(figures(scenario)):
            for peer, rounds in by_peer.items():
                good = [report for report in rounds.values() if "error" not in report]
                found = summary(results, scenario, peer, figure)
                faults = "; ".join(dict.fromkeys(filter(None, map(wrong, rounds.values()))))
                exact = f"**NO: {faults}**" if faults else "yes"
                if not found:
                    lines.append(f"| {scenario} | {peer} | {title} | | | | | | | | {exact} |")
                    continue
                # In a storm, and with idle sockets, the handshake is what takes time.
                times = "connecting" if index == 0 and scenario in ("idle", "storm") else "latency"
                middle = lambda read: statistics.median(read(report) for report in good)
                latencies = [number(middle(lambda report: report[times][quantile])) for quantile in ("p50_us", "p99_us", "p999_us")]
                rate = middle(lambda report: report["deliveries_per_second"])
                ratio = f"{found['ratio']:.2f}" if found["ratio"] is not None else ""
                spread = f"{number(found['least'])}–{number(found['most'])}"
                cells = [scenario, peer, title, number(found["median"]), ratio, spread, number(rate) if rate else "", *latencies, exact]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main_table(results, peers):
    """Each scenario's main figure, and in brackets the ratio to the floor."""
    lines = [f"| | {' | '.join(peers)} |", "|" + "---|" * (len(peers) + 1)]
    for scenario in results:
        title, figure = figures(scenario)[0]
        cells = []
        for peer in peers:
            found = summary(results, scenario, peer, figure)
            ratio = f" ({found['ratio']:.1f})" if found and found["ratio"] is not None else ""
            failed = any(not report["exact"] for report in results[scenario].get(peer, {}).values())
            cells.append((number(found["median"]) + ratio if found else "") + (" **not exact**" if failed else ""))
        lines.append(f"| {scenario}: {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def derived(results):
    """What follows from two scenarios of Signalpost at once."""
    def median(scenario, peer="signalpost"):
        found = scenario in results and summary(results, scenario, peer, message)
        return found["median"] if found else None

    direct, batch, routed, formatted = map(median, ("direct", "batch", "routed", "formatted"))
    floor, small, large = median("fan-out", "floor"), median("growth-1000"), median("growth-100000")
    lines = []
    if batch and floor:
        lines.append(f"batch: {batch / floor:.2f} × the floor's fan-out for each message")
    if direct and routed:
        lines.append(f"routed: {2 * routed - direct:+.1f} µs per event above direct, for two deliveries")
    if formatted and routed:
        lines.append(f"formatted: {2 * (formatted - routed):+.1f} µs per event above routed")
    for report in results.get("fan-out-formatted", {}).get("signalpost", {}).values():
        if report.get("events"):
            # A match for each pair made the group, and an event ended it; they were shaped too.
            calls = report["format_calls"] - report["users"] // 2 - 1
            lines.append(f"fan-out-formatted: {calls:,} format calls for {report['events']:,} messages and {report['deliveries']:,} deliveries")
            break
    busy = [
        f"{scenario} of {peer}"
        for scenario, by_peer in results.items()
        for peer, rounds in by_peer.items()
        if any(report.get("generator", {}).get("busy", 0) > GENERATOR_BUSY for report in rounds.values())
    ]
    if busy:
        lines.append(f"the generator had no time left, so that rates and times are its own, in {', '.join(busy)}")
    if small and large:
        lines.append(f"growth: {100 * (large / small - 1):+.0f} % from 1,000 to 100,000 users with mailboxes")
    return lines


def panels(results):
    """The main figures for the chart; what Signalpost does alone is shown beside what it is compared with."""
    found = {}
    for scenario, by_peer in results.items():
        title, figure = figures(scenario)[0]
        beside = SCENARIOS[scenario].get("floor", scenario)
        rows = found.setdefault(f"{beside}: {title}", [])
        for peer in by_peer:
            if values := summary(results, scenario, peer, figure):
                rows.append((peer if beside == scenario else f"{peer}, {scenario}", values))
    return found.items()


def find_tools(options):
    """Where the programs are; missing peers are skipped."""
    folder = Path(options.folder)
    tools = {
        "original": folder / "original/bin/uvicorn",
        "ws": folder / "ws",
        "nchan": folder / "debian/usr/sbin/nginx",
        "nats": folder / "debian/usr/sbin/nats-server",
        "sockudo": folder / "sockudo/bin/sockudo",
    }
    needs = tools | {"ws": folder / "ws/node_modules/ws"}
    found = {name: str(path) for name, path in tools.items() if needs[name].exists()}
    return found | build(options.programs)


# What cargo builds for a comparison: the server, the generator, and the floor.
PROGRAMS = ("signalpost", "signalpost-load", "floor")


def build(programs):
    """Builds the programs, and copies them so that another build can't replace them during a measurement."""
    if programs:
        return {name: str(Path(programs, name).resolve()) for name in PROGRAMS}
    built = []
    for name in PROGRAMS:
        # Each by itself: built together, the server would get features of dependencies that only the generator asks for.
        command = [os.environ.get("CARGO", "cargo"), "build", "--release", "--locked", "--message-format=json-render-diagnostics", f"-p{name}"]
        lines = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        built += [line["executable"] for line in map(json.loads, lines) if line.get("executable")]
    folder = tempfile.mkdtemp(prefix="peers-programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {name: shutil.copy(next(path for path in built if Path(path).name == name), folder) for name in PROGRAMS}


def versions(tools):
    def said(*command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return " ".join((done.stdout + done.stderr).split()[:6])

    found = {"signalpost": said(tools["signalpost"], "--version")}
    if "original" in tools:
        modules = "import fastapi, uvicorn, platform as p; print('fastapi', fastapi.__version__, 'uvicorn', uvicorn.__version__, 'Python', p.python_version())"
        found["original"] = said(str(Path(tools["original"]).with_name("python")), "-c", modules)
    if "ws" in tools:
        package = json.loads(Path(tools["ws"], "node_modules/ws/package.json").read_text())
        found["ws"] = f"ws {package['version']}, Node {said('node', '--version')}"
    if "nchan" in tools:
        package = next(Path(tools["nchan"]).parents[2].glob("libnginx-mod-nchan_*.deb"), Path())
        found["nchan"] = f"{said(tools['nchan'], '-v')}, {package.stem}"
    found |= {name: said(tools[name], "--version") for name in ("nats", "sockudo") if name in tools}
    return found


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda known: lambda text: [check(name, known) for name in text.split(",")]

    def check(name, known):
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
        return name

    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each run that publishes")
    parser.add_argument("--scenarios", type=names(SCENARIOS), default=list(SCENARIOS), help=",".join(SCENARIOS))
    parser.add_argument("--peers", type=names(ALL), default=ALL, help=",".join(ALL))
    parser.add_argument("--cores", type=lambda text: [int(core) for core in text.split(",")], default=[0, 1], help="the server's, the generator's")
    parser.add_argument("--folder", default=CACHE / "signalpost-peers", help="where `install` put the peers")
    parser.add_argument("--programs", help="a folder with signalpost, signalpost-load and floor, instead of building them")
    parser.add_argument("--out", type=Path, help="a folder for results.json, tables.md and chart.svg")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES_MAX, OPEN_FILES_MAX))
    tools = find_tools(options)
    peers = [peer for peer in options.peers if peer in tools]
    for peer in options.peers:
        if peer not in tools:
            print(f"{peer} is not installed, and left out", file=sys.stderr)
    results = {scenario: {peer: {} for peer in peers if peer in SCENARIOS[scenario]["peers"]} for scenario in options.scenarios}
    started = time.monotonic()
    for round, scenario in itertools.product(range(options.rounds), options.scenarios):
        for peer in results[scenario]:
            report = measure(peer, scenario, options, tools)
            results[scenario][peer][round] = report
            title, figure = figures(scenario)[0]
            said = f"{number(figure(report))} ({title})" if "error" not in report else ""
            fault = f"NOT EXACT: {wrong(report)}" if wrong(report) else ""
            print(f"{time.monotonic() - started:6.0f} s  round {round + 1}  {scenario:18}{peer:12}{said} {fault}", file=sys.stderr)
    about = {"machine": machine(), "versions": versions(tools), "settings": {peer: SETTINGS[peer] for peer in peers}}
    about |= {"rounds": options.rounds, "seconds": options.seconds, "load": {name: SCENARIOS[name]["load"] for name in options.scenarios}}
    text = "\n\n".join(
        [
            f"{about['machine']}; {options.rounds} rounds of {options.seconds} s; the server on core {options.cores[0]}, the generator on core {options.cores[1]}",
            "\n".join(f"- {peer} ({about['versions'].get(peer, 'of this repository')}), changed: {SETTINGS[peer]}" for peer in peers),
            full_table(results),
            main_table(results, peers),
            "\n".join(f"- {line}" for line in derived(results)),
        ]
    )
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(about | {"results": results}, indent=1))
        (options.out / "tables.md").write_text(text + "\n")
        (options.out / "chart.svg").write_text(chart.draw(panels(results), "signalpost"))
    return 0 if all(report["exact"] for by_peer in results.values() for rounds in by_peer.values() for report in rounds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
