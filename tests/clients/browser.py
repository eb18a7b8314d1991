"""Checks a server with a browser's own WebSocket. Usage: browser.py http://ADDRESS/api/pool PORT_OF_THE_PAGE PROCESS_ID_OF_THE_SERVER

The page shows what its sockets read; this script publishes, reads the page, and at the end stops the server."""

import functools
import http.server
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import chromium
import producer
from producer import MATCH, SOON_S, equal, ok

LAST = {"type": "last"}

# Everything at once, so that it was so at one time.
READ_PAGE = """
    const read = list => ({...list.dataset, frames: [...list.children].map(item => item.textContent)});
    return Object.fromEntries([...document.querySelectorAll("ol")].map(list => [list.id, read(list)]));
"""


def main(address, page_port, server_process):
    # The browser is ended in any case, also when this script takes too long and is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAILED  browser: stopped before its end"))
    # The server knows the one page's origin, and not the other's.
    with (
        page_server(int(page_port)) as page,
        page_server(0) as other_page,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        browser = chromium.start(profile, SOON_S, SOON_S)
        query = f"page.html?server={address.replace('http', 'ws', 1)}"
        try:
            browser.get(f"{other_page}/{query}")
            stranger(browser)
            browser.get(f"{page}/{query}")
            messages(browser, address)
            closing(browser, int(server_process))
        finally:
            browser.quit()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class page_server:
    """Serves this folder on loopback: a page from a file would have no origin, as no real page has."""

    def __init__(self, port):
        self.port = port

    def __enter__(self):
        handler = functools.partial(Quiet, directory=Path(__file__).parent)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def stranger(browser):
    wait_for(browser, "no socket of another page opens", lambda socket: socket["state"] == "closed, code 1006, not clean")
    ok("browser: a page of another origin gets no socket")


def messages(browser, address):
    sockets = wait_for(browser, "all sockets are open", lambda socket: socket["state"] == "open")
    protocols = {name: socket["protocol"] for name, socket in sockets.items()}
    equal("the subprotocols", protocols, dict.fromkeys(protocols, "") | {"envelopes": "signalpost.v1"})
    ok("browser: a page opens three sockets of 1001, one with signalpost.v1, and those of 2002 and 3003")

    producer.publish_match(address, rider=1001, driver=2002, pool=9)
    ok("browser: the receipt of a match counts two recipients and two messages")
    # A mailbox is ordered: a socket that shows this has been sent all that came before it.
    for user in (1001, 2002, 3003):
        producer.tell(address, user, LAST)
    sockets = wait_for(browser, "all sockets read the last message", lambda socket: LAST in map(message, socket["frames"]))
    frames = {name: socket["frames"] for name, socket in sockets.items()}

    for name in ("phone", "tablet", "driver"):
        equal(f"the number of frames of {name}", len(frames[name]), 2)
        producer.is_match(name, frames[name][0])
    ok("browser: both plain sockets of 1001, and 2002, read the match once and byte for byte")
    equal("the messages of 3003", [message(text) for text in frames["stranger"]], [LAST])
    ok("browser: 3003 is not told of the match")

    kinds = [json.loads(text)["type"] for text in frames["envelopes"]]
    equal("the envelopes", kinds, ["hello", "message", "message"])
    seq = json.loads(frames["envelopes"][1])["seq"]
    if not frames["envelopes"][1].startswith(f'{{"seq":{seq},"type":"message","data":{MATCH}'):
        raise producer.Failed(f"no envelope around the match: {frames['envelopes'][1]!r}")
    ok("browser: signalpost.v1 reads a hello, and the same match in an envelope")


def closing(browser, server_process):
    os.kill(server_process, signal.SIGTERM)
    sockets = wait_for(browser, "all sockets are closed", lambda socket: socket["state"].startswith("closed"))
    states = {name: socket["state"] for name, socket in sockets.items()}
    equal("how the sockets closed", states, dict.fromkeys(states, "closed, code 1012, clean"))
    ok("browser: SIGTERM closes every socket cleanly with 1012")


def message(text):
    """The message in a frame, with or without an envelope."""
    frame = json.loads(text)
    return frame["data"] if "seq" in frame else frame


def wait_for(browser, what, holds):
    deadline = time.monotonic() + SOON_S
    while True:
        sockets = browser.execute_script(READ_PAGE)
        if len(sockets) == 5 and all(holds(socket) for socket in sockets.values()):
            return sockets
        if time.monotonic() > deadline:
            raise producer.Failed(f"{what}: not within {SOON_S} s; the page shows {json.dumps(sockets, indent=1)}")
        time.sleep(0.05)


producer.run(main)
