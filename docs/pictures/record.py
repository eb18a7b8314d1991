#!/usr/bin/env python3
"""Records `signalpost dev` as a moving picture: docs/pictures/record.py path/to/signalpost writes dev.svg beside itself.

It makes a plugin as docs/plugins.md does, runs the commands of that page, and notes when each line was printed. Long waits are cut short.
"""

import html
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

COLUMNS, LINE_PX, CHAR_PX, MARGIN_PX = 104, 18, 7.83, 16
WAIT_S_MAX, END_S = 1.2, 6
SEND = """signalpost send order.shipped '{"order_id":7,"user_id":1001}'"""
EDIT = "sed -i 's/on its way/at the door/' shop/policy.js shop/fixtures/shipped.json"


class Pane:
    """One terminal: its lines, and when each appeared."""

    def __init__(self, title, rows):
        self.title, self.rows, self.lines = title, rows, []

    def add(self, text, style=""):
        text = re.sub(r"\x1b\[[0-9;]*m", "", text.rstrip("\n"))
        indent = " " * (len(text) - len(text.lstrip()) + 2)
        for part in textwrap.wrap(text, COLUMNS, subsequent_indent=indent, break_long_words=True, drop_whitespace=True) or [""]:
            self.lines.append((time.monotonic(), part, style))

    def follow(self, command, environment, folder):
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        threading.Thread(target=lambda: [self.add(line) for line in process.stdout], daemon=True).start()
        return process

    def waits(self, words, times=1):
        since = time.monotonic()
        # A line may be wrapped within the words.
        while " ".join(line.strip() for _, line, _ in self.lines).count(words) < times:
            assert time.monotonic() - since < 120, f"{self.title} has no {words!r}: {self.lines}"
            time.sleep(0.01)


def record(signalpost):
    dev, listen, shell = Pane("signalpost dev shop", 21), Pane("signalpost listen 1001", 3), Pane("a shell", 7)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        address = "127.0.0.1:%d" % free.getsockname()[1]
        free.close()
        (Path(folder) / "bin").mkdir()
        (Path(folder) / "bin/signalpost").symlink_to(signalpost)
        environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SIGNALPOST_LISTEN": address, "SIGNALPOST_LOG_LEVEL": "error"}

        def run(command):
            done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=True)
            return done.stdout.splitlines()

        for command in ("signalpost plugin new shop --lang js --role routing", "cd shop && npm install --no-audit --no-fund", "signalpost plugin test shop"):
            run(command)
        processes = [dev.follow(["signalpost", "dev", "shop"], environment, folder)]
        try:
            dev.waits("loaded and swapped in")
            processes.append(listen.follow(["signalpost", "listen", "1001", "--url", f"ws://{address}/api/pool"], environment, folder))
            listen.waits("connected")
            for number, command in enumerate([SEND, EDIT, SEND]):
                time.sleep(1)
                shell.add(f"$ {command}", "typed")
                time.sleep(0.5)
                for line in run(f"{command} --url http://{address}/api/pool" if command == SEND else command):
                    shell.add(line)
                dev.waits(*(("loaded and swapped in", 2) if command == EDIT else ("session: [1]", 1 + number // 2)))
            time.sleep(0.5)
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
                process.wait()
    # The port was any free one; the page has the default.
    for pane in (dev, listen, shell):
        pane.lines = [(at, line.replace(address, "127.0.0.1:8080"), style) for at, line, style in pane.lines]
    return [dev, listen, shell]


def shorten(panes):
    """Returns each line's time from the beginning, without long waits."""
    moments = sorted({at for pane in panes for at, _, _ in pane.lines})
    shown, at = {}, 0.5
    for before, moment in zip([moments[0], *moments], moments, strict=False):
        at += min(moment - before, WAIT_S_MAX)
        shown[moment] = at
    return shown, at + END_S


def draw(panes):
    shown, whole = shorten(panes)
    width = int(COLUMNS * CHAR_PX + 4 * MARGIN_PX)
    height = MARGIN_PX + sum((pane.rows + 2) * LINE_PX + MARGIN_PX for pane in panes)
    parts, styles, y = [], [], MARGIN_PX
    for pane in panes:
        box = (pane.rows + 2) * LINE_PX
        parts.append(f'<rect x="{MARGIN_PX}" y="{y}" width="{width - 2 * MARGIN_PX}" height="{box}" rx="8" fill="#151b23" stroke="#3d444d"/>')
        parts.append(f'<text x="{2 * MARGIN_PX}" y="{y + LINE_PX + 1}" class="title">{html.escape(pane.title)}</text>')
        assert len(pane.lines) <= pane.rows, f"{pane.title} has {len(pane.lines)} lines: {pane.lines}"
        for row, (at, text, style) in enumerate(pane.lines):
            # In percent of the whole, so that all lines begin again together.
            begins = 100 * shown[at] / whole
            name = f"a{len(styles)}"
            styles.append(f"@keyframes {name}{{0%,{begins:.2f}%{{opacity:0}}{begins + 0.01:.2f}%,100%{{opacity:1}}}}.{name}{{animation:{name} {whole:.1f}s infinite}}")
            parts.append(f'<text x="{2 * MARGIN_PX}" y="{y + (row + 2) * LINE_PX + 4}" class="{name} {style}" xml:space="preserve">{html.escape(text)}</text>')
        y += box + MARGIN_PX
    style = (
        "text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d1d7e0}.title{fill:#9198a1;font-weight:600}.typed{fill:#7ee787}"
        "@media (prefers-reduced-motion:reduce){text{animation:none!important;opacity:1}}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
            "<title>signalpost dev serves a plugin. An event reaches a listener; the plugin's text is edited; the next event has the new text, on the same socket.</title>",
            f"<style>{style}{''.join(styles)}</style>",
            f'<rect width="{width}" height="{height}" rx="10" fill="#0d1117"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


Path(__file__).with_name("dev.svg").write_text(draw(record(Path(sys.argv[1]).resolve())), encoding="utf-8")
