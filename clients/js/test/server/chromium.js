// Drives a browser over its own protocol (CDP): starts it, loads a page, runs expressions in it.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { WebSocket } from "ws";

import { until } from "./signalpost.js";

const FLAGS = [
  ...["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"],
  ...["--disable-sync", "--disable-quic", "--remote-debugging-port=0"],
  // The flags alone leave it looking up its maker's hosts. The address is no name and needs no look-up.
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

export class Chromium {
  #profile = mkdtempSync(join(tmpdir(), "signalpost-chromium-"));
  #calls = new Map();
  #ids = 0;

  /** Starts a browser with a page of this address. */
  static async start(address) {
    const browser = new Chromium();
    browser.process = spawn("chromium", [...FLAGS, `--user-data-dir=${browser.#profile}`, address], { stdio: "ignore" });
    const file = join(browser.#profile, "DevToolsActivePort");
    const port = await until("the browser", () => existsSync(file) && readFileSync(file, "utf8").split("\n")[0]);
    const page = await until("the page", async () => {
      const targets = await fetch(`http://127.0.0.1:${port}/json/list`).then((response) => response.json());
      return targets.find(({ type, url }) => type === "page" && url === address);
    });
    browser.socket = new WebSocket(page.webSocketDebuggerUrl);
    browser.socket.on("message", (text) => {
      const { id, result, error } = JSON.parse(text);
      if (error) browser.#calls.get(id)?.reject(new Error(error.message));
      else browser.#calls.get(id)?.resolve(result);
      browser.#calls.delete(id);
    });
    await once(browser.socket, "open");
    return browser;
  }

  call(method, params = {}) {
    const id = ++this.#ids;
    this.socket.send(JSON.stringify({ id, method, params }));
    return new Promise((resolve, reject) => this.#calls.set(id, { resolve, reject }));
  }

  async run(expression) {
    const { result, exceptionDetails } = await this.call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  async dispose() {
    const exit = once(this.process, "exit");
    await Promise.race([this.call("Browser.close"), exit]);
    await exit;
    rmSync(this.#profile, { recursive: true, force: true, maxRetries: 10 });
  }
}
