"""Chromium, for the programs that look at pages: without a window, a look-up of names, or a download of its own.

The `run` beside each of them puts this folder on PYTHONPATH."""

import shutil

from selenium import webdriver

FLAGS = """
    --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update
    --disable-sync --disable-quic
""".split()

# The flags alone leave it looking up its maker's hosts. The address is no name and needs no look-up.
NO_NAMES = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


def start(profile, load_s, script_s, watch=""):
    """Starts a browser with a folder for its profile. Pages load, and scripts end, within these seconds. `watch`: a script that each page runs
    before its own."""
    options = webdriver.ChromeOptions()
    # Both are named, so that selenium doesn't look for downloads.
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS, NO_NAMES, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    browser.set_page_load_timeout(load_s)
    browser.set_script_timeout(script_s)
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": watch})
    return browser


def look(browser, scheme, width, height, scale=1):
    """Sets the colour scheme and the size of the window."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
