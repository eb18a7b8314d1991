"""Drives the ride in Chromium: three people, from the request to the arrival. Usage: test.py SIGNALPOST AXE [FOLDER_FOR_SCREENSHOTS]

It starts `run`, as a reader of README.md does.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chromium

HERE = Path(__file__).parent
# Whatever must come comes within this time, also on a busy machine. The first start installs what is needed.
SOON_S, START_S = 30, 300
# axe-core looks at each element, which takes a second on a machine that does nothing else.
AXE_S = 90
ADA, BEN, DANA = 1001, 1002, 2002
# Everything that a page does wrong, from its beginning, and all notes that it has shown, also for a moment.
WATCH = """
    window.wrong = [];
    addEventListener("error", event => wrong.push(`error: ${event.message}`));
    addEventListener("unhandledrejection", event => wrong.push(`rejection: ${event.reason}`));
    window.notes = new Set();
    const look = () => document.querySelectorAll(".note").forEach(note => notes.add(`${note.closest("article")?.id}: ${note.textContent}`));
    new MutationObserver(look).observe(document, {childList: true, subtree: true});
"""


class Failed(Exception):
    pass


def ok(sentence):
    print(f"ok  ride: {sentence}", flush=True)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Example:
    """The example as `run` starts it, at free ports."""

    def __init__(self, signalpost):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        ports = {"RIDE_PORT": str(self.port), "RIDE_SERVER_PORT": str(free_port())}
        self.process = subprocess.Popen([HERE / "run", signalpost], env=os.environ | ports, stdout=subprocess.PIPE, text=True)
        signal.alarm(START_S)
        line = self.process.stdout.readline()
        signal.alarm(0)
        if "the ride is at" not in line:
            raise Failed(f"run said {line!r}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SOON_S)


class Page:
    def __init__(self, profile, address):
        self.browser = chromium.start(profile, SOON_S, AXE_S, WATCH)
        self.look("light", 1240, 900)
        self.browser.get(address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.browser.quit()

    def look(self, scheme, width, height, scale=1):
        chromium.look(self.browser, scheme, width, height, scale)

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def text(self, user):
        return self.run("return document.querySelector(`#user-${arguments[0]}`)?.textContent ?? ''", user)

    def waits(self, what, holds):
        """Waits until something holds, and returns it."""
        ends = time.monotonic() + SOON_S
        while not (held := holds()):
            if time.monotonic() > ends:
                shown = {user: self.text(user) for user in (ADA, BEN, DANA)}
                raise Failed(f"{what}: not within {SOON_S} s; the page shows {json.dumps(shown, indent=1, ensure_ascii=False)}")
            time.sleep(0.05)
        return held

    def shows(self, user, *words):
        for word in words:
            self.waits(f"{user} is shown {word!r}", lambda word=word: word in self.text(user))

    def has_shown(self, user, note):
        script = "return [...notes].some(note => note.startsWith(arguments[0]))"
        self.waits(f"{user} was shown {note!r}", lambda: self.run(script, f"user-{user}: {note}"))

    def press(self, user, button):
        script = """
            const buttons = [...document.querySelectorAll(`#user-${arguments[0]} button`)];
            const found = buttons.find(button => button.textContent === arguments[1]);
            found?.click();
            return !!found;
        """
        self.waits(f"the button {button!r} of {user}", lambda: self.run(script, user, button))

    def asks(self, user, pickup, dropoff):
        script = """
            const [pickup, dropoff] = document.querySelectorAll(`#user-${arguments[0]} select`);
            if (!dropoff) return false;
            Object.assign(pickup, {value: arguments[1]});
            Object.assign(dropoff, {value: arguments[2]});
            return true;
        """
        self.waits(f"the form of {user}", lambda: self.run(script, user, pickup, dropoff))
        self.press(user, "Request a ride")

    def writes(self, user, text):
        script = "document.querySelector(`#user-${arguments[0]} .chat input`).value = arguments[1]"
        self.run(script, user, text)
        self.press(user, "Send")

    def at(self, user):
        return self.run("return Number(document.querySelector(`#user-${arguments[0]} .route`)?.dataset.at ?? -1)", user)

    def log(self, name):
        return self.run("return [...document.querySelectorAll(`#${arguments[0]} code`)].map(code => code.textContent)", name)


def main(signalpost, axe, screenshots=None):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAILED  ride: stopped before its end"))
    with (
        Example(signalpost) as example,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Page(profile, f"{example.address}/?street_ms=9000") as page,
    ):
        for user in (ADA, BEN, DANA):
            page.shows(user, "online")
        page.waits("the backend hears of a driver", lambda: "signalpost.session.opened" in page.log("heard"))
        ok("two riders and a driver are online, and the backend hears of it")
        matched(page)
        chatted(page)
        looks(page, Path(axe).read_text(), Path(screenshots) if screenshots else None)
        driven(page, Path(screenshots) if screenshots else None)
        declined(page)
        reloaded(page)
        wrong = page.run("return wrong")
        if wrong:
            raise Failed(f"the page did something wrong: {wrong}")
        ok("the page has made no error")


def matched(page):
    page.asks(ADA, "Harbour", "Station")
    page.shows(ADA, "looking for a driver")
    page.shows(DANA, "Ada asks for a ride", "Harbour → Station")
    page.press(DANA, "Accept")
    page.shows(ADA, "Dana drives", "€16.80")
    page.shows(DANA, "With Ada")
    ok("an offer reaches the driver, her answer the backend, and the match the rider, who learns the fare")
    page.asks(BEN, "Market", "Airport")
    page.shows(DANA, "Ben asks for a ride")
    page.press(DANA, "Accept")
    page.shows(BEN, "Dana drives, with Ada", "€12.48")
    page.shows(ADA, "Ben shares your ride", "€10.92")
    page.shows(DANA, "With Ada and Ben")
    for user, others in ((ADA, "€12.48"), (BEN, "€10.92")):
        if others in page.text(user):
            raise Failed(f"{user} is shown what somebody else pays: {page.text(user)}")
    ok("a second rider shares the car, and each is shown their own fare alone")
    page.waits("the backend heard two answers", lambda: page.log("heard").count("pooling.offer.accepted") == 2)
    if page.log("published").count("pooling.match.found") != 2:
        raise Failed(f"the backend published {page.log('published')}")
    ok("the sink told the backend each answer once")


def chatted(page):
    markup = "At the gate & waving <3"
    page.writes(ADA, markup)
    page.shows(BEN, markup)
    page.shows(DANA, markup)
    page.writes(DANA, "Two minutes!")
    page.shows(ADA, "Two minutes!")
    page.shows(BEN, "Two minutes!")
    page.waits("the backend heard what was written", lambda: page.log("heard").count("pooling.chat.message") == 2)
    ok("what one writes all read, as text, and the backend hears it")


def looks(page, axe, screenshots):
    for scheme in ("light", "dark"):
        for width, height in ((1240, 900), (360, 780)):
            page.look(scheme, width, height)
            found = page.run("return document.documentElement.scrollWidth")
            if found > width:
                raise Failed(f"at {width} pixels the page is {found} wide")
            beyond = page.run("""
                const inside = element => !element.closest(".log ol, .lines");
                const isCut = ({width, left, right}) => width && (left < -1 || right > innerWidth + 1);
                const found = [...document.querySelectorAll("body *")].filter(inside);
                return found.filter(element => isCut(element.getBoundingClientRect())).map(({tagName, className}) => `${tagName} ${className}`);
            """)
            if beyond:
                raise Failed(f"at {width} pixels these are cut off: {beyond}")
            accessible(page, axe, f"{scheme}, {width} pixels")
            shot(page, screenshots, f"ride-{scheme}-{width}")
    page.look("light", 1240, 900)
    ok("nothing is cut off at 1240 and at 360 pixels, and axe-core finds nothing in either colour scheme")


def accessible(page, axe, where):
    page.run(axe)
    violations = page.browser.execute_async_script("const done = arguments[0]; axe.run().then(({violations}) => done(violations))")
    if violations:
        found = [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in violations]
        raise Failed(f"axe-core, {where}: {json.dumps(found, indent=1)}")


def shot(page, screenshots, name):
    if screenshots:
        time.sleep(0.7)
        height = page.run("return Math.ceil(document.body.getBoundingClientRect().bottom)")
        clip = {"x": 0, "y": 0, "width": page.run("return innerWidth"), "height": height, "scale": 1}
        data = page.browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "webp", "quality": 75, "clip": clip, "captureBeyondViewport": True}
        )["data"]
        (screenshots / f"{name}.webp").write_bytes(base64.b64decode(data))


def reloaded(page):
    page.asks(BEN, "Market", "Airport")
    page.shows(DANA, "Ben asks for a ride")
    page.press(DANA, "Accept")
    page.shows(BEN, "Dana drives")
    page.writes(BEN, "Here!")
    page.shows(DANA, "Here!")
    page.asks(ADA, "Harbour", "Station")
    page.shows(DANA, "Ada asks for a ride")
    page.browser.refresh()
    page.shows(BEN, "online", "Dana drives", "€19.20", "Here!")
    page.shows(DANA, "online", "With Ben", "Ada asks for a ride", "Here!")
    page.shows(ADA, "online", "looking for a driver")
    page.press(DANA, "Accept")
    page.shows(ADA, "Dana drives, with Ben")
    ok("a page that was loaded again shows the same ride")


def driven(page, screenshots):
    page.press(DANA, "Start driving")
    page.has_shown(ADA, "The ride has begun")
    seen = []
    for user in (ADA, BEN):
        seen.append(page.waits(f"the car moves for {user}", lambda user=user: (at := page.at(user)) > 0.05 and at))
    page.waits("the car moves on", lambda: page.at(ADA) > seen[0] + 0.1)
    ok("the driver's positions move the car on the riders' pages")
    if screenshots:
        page.waits("the car is half way", lambda: page.at(BEN) > 0.4)
        for scheme in ("light", "dark"):
            page.look(scheme, 1240, 900)
            shot(page, screenshots, f"ride-{scheme}")
    page.has_shown(ADA, "Picks up Ben at Market")
    page.has_shown(BEN, "You get in at Market")
    page.has_shown(BEN, "Drops off Ada at Station")
    page.shows(ADA, "You have arrived. You pay €10.92.")
    page.shows(BEN, "You have arrived. You pay €12.48.")
    page.shows(DANA, "No request yet")
    ok("all arrive, and each is told what they pay")


def declined(page):
    page.asks(BEN, "Harbour", "Airport")
    page.shows(DANA, "Ben asks for a ride")
    page.press(DANA, "Decline")
    page.shows(BEN, "the driver has declined")
    ok("a driver who declines is heard as well")


try:
    main(*sys.argv[1:])
except Failed as failed:
    sys.exit(f"FAILED  ride: {failed}")
