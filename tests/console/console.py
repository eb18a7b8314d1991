"""Checks the console in a browser. Usage: console.py http://ADDRESS/api/pool FOLDER_WITH_KEYS_AND_AXE [FOLDER_FOR_SCREENSHOTS]"""

import json
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import chromium
from chromium import look
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

# Whatever must come comes within this time, also on a busy machine.
SOON_S = 30

# axe-core looks at each element, which takes a second on a machine that does nothing else.
AXE_S = 90

# Everything that a page does wrong, from its beginning.
WATCH = """
    window.wrong = [];
    addEventListener("error", event => wrong.push(`error: ${event.message}`));
    addEventListener("unhandledrejection", event => wrong.push(`rejection: ${event.reason}`));
    document.addEventListener("securitypolicyviolation", event => wrong.push(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
"""

# Each page, and what it shows once it has its data.
PAGES = {
    "overview": "Time of policy calls",
    "live": "pooling.match.found",
    "users": "a long name, as some have",
    "users/1001": "Send a test message",
    "policies": "fragile",
    "letters": "fragile",
    "letters/1": "unreachable",
    "sinks": "sinks",
    "try": "Dry run",
    "settings": "SIGNALPOST_LISTEN",
}

MATCH = {"request_id": 42, "rider_id": 1001, "driver_id": 2002, "pool_id": 7}


class Failed(Exception):
    pass


def ok(sentence):
    print(f"ok  {sentence}")


class Server:
    def __init__(self, address, key):
        self.address, self.key = address, key

    def post(self, path, body, content_type="application/json"):
        headers = {"Content-Type": content_type, "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=SOON_S) as response:
            return json.load(response)

    def publish(self, event_type, data):
        return self.post("/events", {"type": event_type, "data": data})


class Traffic:
    """Publishes until it is stopped: batches of `size` events, `rate` of them in a second."""

    def __init__(self, server, size, rate, event_type="pooling.match.found"):
        self.server, self.size, self.event_type = server, size, event_type
        self.pause, self.published = 1 / rate, 0
        self.over = threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(SOON_S)

    def run(self):
        due = time.monotonic()
        while not self.over.is_set():
            event = {"specversion": "1.0", "source": "/console", "type": self.event_type, "data": MATCH}
            batch = [{**event, "id": str(self.published + n)} for n in range(self.size)]
            self.server.post("/events", batch, "application/cloudevents-batch+json")
            self.published += self.size
            due += self.pause
            self.over.wait(max(0, due - time.monotonic()))


def wait_for(browser, what, script, *arguments, seconds=SOON_S):
    """Waits until a script returns something that is true, and returns that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = browser.execute_script(script, *arguments)
        if found:
            return found
        time.sleep(0.05)
    text = browser.execute_script("return document.body.innerText")
    raise Failed(f"{what}: not within {seconds} s. The page says:\n{text[:1500]}")


def shows(browser, text, seconds=SOON_S):
    script = "return document.querySelector('main')?.innerText.toLowerCase().includes(arguments[0])"
    wait_for(browser, f"“{text}” is shown", script, text.lower(), seconds=seconds)


def press(browser, label, within="main"):
    script = """
        const buttons = [...document.querySelectorAll(`${arguments[1]} button`)].filter(button => button.checkVisibility() && !button.disabled);
        const button = buttons.find(button => button.textContent === arguments[0]);
        button?.click();
        return Boolean(button);
    """
    wait_for(browser, f"a button “{label}”", script, label, within)


def fill(browser, selector, text):
    browser.execute_script(
        """
        const field = document.querySelector(arguments[0]);
        field.value = arguments[1];
        field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input", { bubbles: true }));
        """,
        selector,
        text,
    )


def clean(browser, where):
    """Checks that the page has done nothing wrong so far."""
    wrong = browser.execute_script("return window.wrong")
    if wrong:
        raise Failed(f"{where}: {wrong}")


def accessible(browser, where, axe):
    browser.execute_script(axe)
    violations = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) => done(violations.map(
          ({ id, impact, nodes }) => [impact, id, nodes.slice(0, 3).map(node => `${node.html.slice(0, 160)}: ${node.failureSummary}`)])), error => done([["critical", String(error)]]));
        """
    )
    serious = [violation for violation in violations if violation[0] in ("serious", "critical")]
    if serious:
        raise Failed(f"{where}: axe-core says {json.dumps(serious, indent=1)}")


def asks_for_a_key(browser, console, keys):
    browser.get(console)
    shows(browser, "A key is needed")
    fill(browser, "#key", "signalpost_wrong")
    press(browser, "Use it in this tab")
    shows(browser, "This key is not accepted")
    fill(browser, "#key", keys["reader"])
    press(browser, "Use it in this tab")
    shows(browser, "Time of policy calls")
    browser.get(f"{console}#/policies")
    shows(browser, "Examples are not shown")
    browser.get(f"{console}#/live")
    shows(browser, "without payloads")
    press(browser, "Forget the key", "header")
    shows(browser, "A key is needed")
    fill(browser, "#key", keys["everything"])
    press(browser, "Use it in this tab")
    shows(browser, "Pause")
    if browser.execute_script("return [localStorage.length, document.cookie.length]") != [0, 0]:
        raise Failed("the key is kept outside of this tab")
    clean(browser, "the key")
    ok("the key is asked for, refused if it is wrong, kept for the tab alone; one that only reads sees no payloads")


def every_page(browser, console, axe, screenshots):
    for scheme, width, height in [("light", 1280, 900), ("dark", 1280, 900), ("light", 360, 780)]:
        look(browser, scheme, width, height)
        for page, text in PAGES.items():
            where = f"{page} ({scheme}, {width} px)"
            browser.get(f"{console}#/{page}")
            shows(browser, text)
            if page == "live":
                browser.execute_script("[...document.querySelectorAll('.feed button.plain')].find(row => row.textContent === 'pooling.match.found').click()")
                shows(browser, "tells 1001")
            if page == "policies":
                open_examples(browser)
            if page == "try":
                press(browser, "Dry run")
                shows(browser, "What would happen")
            overflow = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
            if overflow > 0:
                raise Failed(f"{where}: the page is {overflow} px wider than the screen")
            accessible(browser, where, axe)
            clean(browser, where)
            if screenshots:
                browser.save_screenshot(str(screenshots / f"{scheme}-{width}-{page.replace('/', '-')}.png"))
    ok(f"{len(PAGES)} pages in both schemes and at 360 px: no script error, nothing against the policy, nothing serious for axe-core, none too wide")


def candidate_of(policy):
    return f"[aria-label='Candidate of {policy}']"


def says(browser, selector, text):
    script = "return document.querySelector(arguments[0])?.innerText.toLowerCase().includes(arguments[1])"
    wait_for(browser, f"“{text}” in {selector}", script, selector, text.lower())


def open_examples(browser):
    selector = f"{candidate_of('pooling')} details"
    wait_for(browser, "a difference", "const found = document.querySelector(arguments[0]); if (found) found.open = true; return found", selector)
    says(browser, selector, '"You have been matched for a pooling request!" ≠ "You have been mitched for a pooling request!"')


def candidates_are_shown(browser, server, console):
    fragile, refused = candidate_of("fragile"), candidate_of("chat")
    browser.get(f"{console}#/policies")
    open_examples(browser)
    says(browser, candidate_of("pooling"), "0 faults")
    says(browser, refused, "is not WebAssembly")
    unfit = "const button = document.querySelector(`${arguments[0]} .primary`); return button.disabled && document.getElementById(button.getAttribute('aria-describedby')).innerText"
    if "is refused" not in wait_for(browser, "why it is not promoted", unfit, refused):
        raise Failed("the button “Promote” does not say why the candidate would be refused")
    server.publish("pooling.driver.location", {"pool_id": 7, "driver_id": 2002, "lat": 48.1, "lon": 11.5, "lot": 1})
    says(browser, fragile, "1 fault")
    says(browser, f"{fragile} [aria-label=Backtrace]", "route")
    if "faulted 1 times" not in wait_for(browser, "why it is not promoted", unfit, fragile):
        raise Failed("the canary that has faulted could be promoted")
    browser.get(f"{console}#/overview")
    shows(browser, "has a candidate whose file is refused")
    clean(browser, "candidates")
    ok("candidates: a shadow's differences, a canary's fault with its backtrace, a refused file, each with why it would not be promoted")


def candidates_end(browser, console):
    fragile, pooling = candidate_of("fragile"), candidate_of("pooling")
    browser.get(f"{console}#/policies")
    says(browser, fragile, "on trial")
    browser.execute_script("document.querySelector(`${arguments[0]} .danger`).focus()", fragile)
    keys = ActionChains(browser)
    keys.send_keys(Keys.ENTER).perform()
    wait_for(browser, "the question", "return document.querySelector(`${arguments[0]} dialog[open]`)?.contains(document.activeElement)", fragile)
    keys.send_keys(Keys.ESCAPE).perform()
    is_back = "return !document.querySelector('dialog[open]') && document.activeElement === document.querySelector(`${arguments[0]} .danger`)"
    wait_for(browser, "the focus is back on the button", is_back, fragile)
    press(browser, "Drop", fragile)
    press(browser, "Drop", f"{fragile} dialog")
    says(browser, fragile, "Dropped.")
    says(browser, fragile, "was dropped")
    press(browser, "Promote", pooling)
    press(browser, "Promote", f"{pooling} dialog")
    says(browser, pooling, "serves, in revision")
    says(browser, pooling, "serves already")
    clean(browser, "the end of candidates")
    ok("a candidate is dropped and another one promoted, when the question is answered, by the keyboard too")


def a_fault_is_shown(browser, server, console):
    browser.get(f"{console}#/live")
    shows(browser, "Live")
    wait_for(browser, "the feed is open", "return document.querySelector('.dot.on')")
    fill(browser, "select", "fault")
    wait_for(browser, "the filtered feed is open", "return document.querySelector('.dot.on') && !document.querySelector('.feed tbody tr')")
    took = min(fault_to_backtrace(browser, server, attempt) for attempt in range(3))
    if took > 1:
        raise Failed(f"a fault and its backtrace took {took:.2f} s")
    browser.get(f"{console}#/policies")
    wait_for(browser, "the last fault", "return document.querySelector('[aria-label=fragile] [aria-label=Backtrace]')?.innerText.includes('pooling')")
    clean(browser, "the fault")
    ok(f"a fault is shown with its backtrace after {took:.2f} s")


def fault_to_backtrace(browser, server, attempt):
    """Returns the seconds from a fault to its backtrace on the page. A busy machine may delay one of several."""
    began = time.monotonic()
    server.publish("pooling.driver.location", {"pool_id": 7, "driver_id": 2002, "lat": 48.1, "lon": 11.5})
    wait_for(browser, "the fault is in the feed", "return document.querySelectorAll('.feed button.plain').length > arguments[0]", attempt)
    browser.execute_script("document.querySelector('.feed button.plain').click()")
    wait_for(browser, "its backtrace", "return document.querySelector('.details [aria-label=Backtrace]')?.innerText.includes('pooling')")
    took = time.monotonic() - began
    press(browser, "Close", ".details")
    return took


def things_are_changed(browser, console):
    browser.get(f"{console}#/users/1001")
    shows(browser, "signalpost.v1")
    press(browser, "Send it")
    shows(browser, "Posted.")
    press(browser, "End all sessions")
    press(browser, "End all sessions", "dialog")
    shows(browser, "1 session ended.")
    browser.get(f"{console}#/letters")
    shows(browser, "fragile")
    browser.execute_script("document.querySelector('tbody a').click()")
    press(browser, "Retry")
    shows(browser, "The retry")
    browser.get(f"{console}#/letters")
    press(browser, "Delete all")
    press(browser, "Delete all", "dialog")
    shows(browser, "There are no dead letters.")
    browser.get(f"{console}#/policies")
    press(browser, "Reload now")
    shows(browser, "Nothing has changed.")
    browser.get(f"{console}#/try")
    shows(browser, "Dry run")
    fill(browser, "#try-data", '{"n": 1')
    press(browser, "Dry run")
    shows(browser, "not one JSON value")
    fill(browser, "#try-type", "pooling.match.found")
    fill(browser, "#try-data", json.dumps({**MATCH, "fare": 9007199254740993}))
    press(browser, "Publish")
    press(browser, "Publish", "dialog")
    shows(browser, "What happened")
    shows(browser, "9007199254740993")
    press(browser, "How far did the messages get?")
    wait_for(browser, "the receipt afterwards", "return document.querySelector('[aria-label=\"How far the messages got\"]')?.innerText.includes('1001')")
    browser.get(f"{console}#/groups/pool:7")
    shows(browser, "2 members")
    browser.get(f"{console}#/users/nobody-has-this-name")
    shows(browser, "This user is away.")
    browser.get(f"{console}#/letters/999")
    shows(browser, "there is no such dead letter")
    clean(browser, "changes")
    ok("a test message, ended sessions, a retried and a deleted letter, a reload, a dry run and an event, each with its answer")


def keyboard_alone(browser, console):
    browser.get(f"{console}#/live")
    shows(browser, "pooling.match.found")
    press(browser, "Pause")
    reached = browser.execute_script(
        """
        const row = document.querySelector(".feed button.plain");
        row.focus();
        const isFocused = document.activeElement === row;
        row.click();
        return isFocused && row.id;
        """
    )
    wait_for(browser, "the opened entry has the focus", "return document.activeElement === document.querySelector('.details h2')")
    browser.execute_script("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }))")
    wait_for(browser, "the focus goes back to its row", "return document.activeElement.id === arguments[0]", reached)
    browser.get(f"{console}#/overview")
    shows(browser, "Time of policy calls")
    before = browser.execute_script("const plot = document.querySelector('.plot'); plot.focus(); return plot.getAttribute('aria-valuetext')")
    browser.execute_script("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }))")
    wait_for(browser, "the chart follows the arrow keys", "return document.querySelector('.plot').getAttribute('aria-valuetext') !== arguments[0]", before)
    clean(browser, "the keyboard")
    ok("an entry is opened and closed, and a chart read, by the keyboard, with the focus where it belongs")


def the_heap_does_not_grow(browser, server, console):
    def heap_mb():
        browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "JSHeapUsedSize") / 1e6

    browser.execute_cdp_cmd("Performance.enable", {})
    browser.get(f"{console}#/live")
    shows(browser, "Pause")
    with Traffic(server, 1000, 10, "nobody.wants.this") as traffic:
        wait_for(browser, "losses are told", "return document.querySelector('.status').innerText.includes('lost')")
        reaches(traffic, 10_000)
        first, began = heap_mb(), time.monotonic()
        reaches(traffic, 60_000)
        last, seconds = heap_mb(), time.monotonic() - began
    rows = browser.execute_script("return document.querySelectorAll('.feed tbody tr').length")
    said = f"{rows} rows, and a heap of {first:.1f} and then {last:.1f} MB, after 50,000 events in {seconds:.0f} s"
    if rows > 300 or last > first + 5 or last > 60:
        raise Failed(said)
    clean(browser, "the flood")
    ok(f"a flood leaves {said}")


def reaches(traffic, published):
    end = time.monotonic() + 60
    while traffic.published < published:
        if time.monotonic() > end:
            raise Failed(f"only {traffic.published} events were published")
        time.sleep(0.1)


def main(address, work, screenshots=None):
    # The browser is ended in any case, also when this script takes too long and is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAILED  console: stopped before its end"))
    work = Path(work)
    keys = {name: (work / f"{name}.key").read_text().strip() for name in ("everything", "reader")}
    server, axe = Server(address, keys["everything"]), (work / "package/axe.min.js").read_text()
    console = address.removesuffix("/api/pool") + "/console/"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = chromium.start(profile, SOON_S, AXE_S, WATCH)
        look(browser, "light", 1280, 900)
        try:
            with Traffic(server, 1, 10):
                asks_for_a_key(browser, console, keys)
                a_fault_is_shown(browser, server, console)
                candidates_are_shown(browser, server, console)
                every_page(browser, console, axe, Path(screenshots) if screenshots else None)
                keyboard_alone(browser, console)
                things_are_changed(browser, console)
                candidates_end(browser, console)
            the_heap_does_not_grow(browser, server, console)
        finally:
            browser.quit()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Failed as failure:
        sys.exit(f"FAILED  console: {failure}")
