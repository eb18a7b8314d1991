// A real server, tokens for it, and the proxy through which clients reach it.

import { spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const SOON_MS = 30_000;

const PLUGINS = new URL("../../../../plugins", import.meta.url).pathname;

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `holds` returns something, and returns it. */
export async function until(what, holds, withinMs = SOON_MS) {
  const deadline = Date.now() + withinMs;
  for (;;) {
    const held = await holds();
    if (held) return held;
    if (Date.now() > deadline) throw new Error(`${what}: not within ${withinMs} ms`);
    await sleep(10);
  }
}

export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** Makes tokens of this secret, as an application's own server would. */
export class Issuer {
  secret = randomBytes(32);

  token(user, lifeS) {
    const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    // Also if it is asked for twice in a second, it is another token.
    const claims = { sub: user, exp: Math.ceil(Date.now() / 1000 + lifeS), jti: randomBytes(8).toString("hex") };
    const text = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
    return `${text}.${createHmac("sha256", this.secret).update(text).digest("base64url")}`;
  }
}

/** A server at a port of its own, which it keeps over restarts. */
export class Server {
  #process;
  #store;
  #dir = mkdtempSync(join(tmpdir(), "signalpost-js-"));
  log = "";

  /** `config`: TOML. `issuer`: whose tokens it asks for. `durability`: whether what is kept outlives the process. */
  static async start(binary, config = "", issuer, durability = "memory") {
    const server = new Server();
    server.#store = { SIGNALPOST_STORE_DURABILITY: durability, SIGNALPOST_STORE_DIR: join(server.#dir, "store") };
    server.binary = binary;
    server.port = await freePort();
    server.address = `http://127.0.0.1:${server.port}/api/pool`;
    writeFileSync(join(server.#dir, "secret"), issuer?.secret ?? "");
    const users = issuer ? `\n[auth.users]\nalgorithms = ["HS256"]\nkey_files = ["${join(server.#dir, "secret")}"]\nleeway_s = 0\nexpiry_grace_ms = 500\n` : "";
    writeFileSync(join(server.#dir, "signalpost.toml"), `${config}\n${users}`);
    await server.begin();
    return server;
  }

  async begin() {
    const flags = ["serve", "--config", join(this.#dir, "signalpost.toml"), "--listen", `127.0.0.1:${this.port}`, "--plugins", PLUGINS];
    this.#process = spawn(this.binary, flags, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...this.#store } });
    for (const stream of [this.#process.stdout, this.#process.stderr]) stream.on("data", (text) => (this.log += text));
    await until("the server is ready", async () => {
      if (this.#process.exitCode !== null) throw new Error(`the server did not start:\n${this.log}`);
      return fetch(`http://127.0.0.1:${this.port}/readyz`).then(({ ok }) => ok, () => false);
    });
  }

  /** Ends the process with a signal, and waits for its end. */
  async end(signal) {
    if (this.#process.exitCode !== null || this.#process.signalCode) return;
    const exit = once(this.#process, "exit");
    this.#process.kill(signal);
    await exit;
  }

  async dispose() {
    await this.end("SIGKILL");
    rmSync(this.#dir, { recursive: true });
  }

  async tell(user, message) {
    const body = JSON.stringify(message);
    const headers = { "content-type": "application/json" };
    const response = await fetch(`${this.address}/users/${encodeURIComponent(user)}/messages`, { method: "POST", headers, body });
    if (response.status !== 202) throw new Error(`${response.status} ${await response.text()}`);
  }

  async publish(type, data) {
    const headers = { "content-type": "application/json" };
    const response = await fetch(`${this.address}/events`, { method: "POST", headers, body: JSON.stringify({ type, data }) });
    if (response.status !== 202) throw new Error(`${response.status} ${await response.text()}`);
  }

  async sessions(user) {
    const response = await fetch(`${this.address}/users/${encodeURIComponent(user)}`);
    return (await response.json()).sessions ?? [];
  }

  async endSessions(user) {
    await fetch(`${this.address}/users/${encodeURIComponent(user)}/sessions`, { method: "DELETE" });
  }
}

/** A proxy whose connections the test cuts. */
export class Proxy {
  #connections = new Set();
  /** What happens to a connection that comes: `pass`, `reset`, `hole` (it is never answered) or `503`. */
  mode = "pass";
  /** When each connection came. */
  arrivals = [];

  static async start(target) {
    const proxy = new Proxy();
    proxy.target = target;
    proxy.server = createServer((down) => proxy.#take(down)).listen(0, "127.0.0.1");
    await once(proxy.server, "listening");
    proxy.address = `ws://127.0.0.1:${proxy.server.address().port}/api/pool`;
    return proxy;
  }

  #take(down) {
    this.arrivals.push(performance.now());
    down.on("error", () => {});
    down.setNoDelay();
    if (this.mode === "reset") return down.resetAndDestroy();
    if (this.mode === "503") return down.once("data", () => down.end("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"));
    if (this.mode === "hole") {
      this.#connections.add({ down, up: down });
      return;
    }
    const up = createConnection(this.target, "127.0.0.1");
    up.setNoDelay();
    const connection = { down, up };
    this.#connections.add(connection);
    up.on("error", () => down.destroy());
    // As it is: an end is passed on as an end.
    down.pipe(up);
    up.pipe(down);
    const over = () => {
      this.#connections.delete(connection);
      down.destroy();
      up.destroy();
    };
    down.on("close", over);
    up.on("close", () => down.destroyed || setTimeout(over, 1000));
  }

  /** Ends all connections without a close frame, by a reset or by an end. */
  cut(how = "reset") {
    for (const { down, up } of this.#connections) {
      if (how === "reset") down.resetAndDestroy();
      else down.end();
      up.destroy();
    }
    this.#connections.clear();
  }

  /** Passes on nothing more of what goes `up`, `down` or `both` ways over the connections that are there. */
  silence(ways = "both") {
    for (const { down, up } of this.#connections) {
      if (ways !== "down") down.unpipe(up).pause();
      if (ways !== "up") up.unpipe(down).pause();
    }
  }

  /** Passes on what was held back. */
  resume() {
    for (const { down, up } of this.#connections) up.pipe(down);
  }

  close() {
    this.cut();
    this.server.close();
  }
}
