// A client, in Chromium or in this process, whose connection is dropped in every way: it hears each message once, or one `gap`.
//
// Usage: drops.js SIGNALPOST [--in chromium|node] [--way websocket|sse] [--store os|memory] [--drops N] [--seed N]
//
// With `--way sse` no WebSocket gets through, and the client falls back to server-sent events.
//
// With the store on (`os`), a restart and a kill -9 lose nothing. Without it, each is a gap.

import { createServer } from "node:http";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { WebSocket } from "ws";

import { Signalpost } from "../../dist/index.js";
import { sse } from "../../dist/sse.js";
import { Chromium } from "./chromium.js";
import { Issuer, Proxy, Server, sleep, until } from "./signalpost.js";

const USER = "1001";
const LIFE_S = 4;
const CONFIG = `
[sockets]
ping_interval_ms = 1000
pong_deadline_ms = 1000
per_user_max = 2
too_many = "refuse-newest"
messages_per_second_max = 20
`;

/** Marsaglia's xorshift32: the same drops for the same seed. */
function random(seed) {
  let state = seed * 2_654_435_761 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** The application's own server: the page, `dist/` as it is, and the tokens. */
class Application {
  issuer = new Issuer();
  /** Tokens wait for this. */
  held = Promise.resolve();
  bad = 0;
  reasons = [];

  async start() {
    this.http = createServer(async (request, response) => {
      const { pathname, searchParams } = new URL(request.url, "http://h");
      if (pathname === "/token") {
        const text = await this.token({ reason: searchParams.get("reason") });
        response.end(text);
        return;
      }
      const file = pathname.startsWith("/dist/") ? `../..${pathname}` : "page.html";
      response.setHeader("content-type", pathname.endsWith(".js") ? "text/javascript" : "text/html");
      response.end(readFileSync(new URL(file, import.meta.url)));
    }).listen(0, "127.0.0.1");
    await once(this.http, "listening");
    this.address = `http://127.0.0.1:${this.http.address().port}`;
  }

  async token({ reason }) {
    this.reasons.push(reason);
    await this.held;
    if (this.bad-- > 0) return new Issuer().token(USER, LIFE_S);
    return this.issuer.token(USER, LIFE_S);
  }

  hold() {
    let release;
    this.held = new Promise((resolve) => (release = resolve));
    return release;
  }
}

/** A network that lets no WebSocket through. */
class NoWebSocket {
  constructor() {
    setTimeout(() => this.onclose({ code: 1006, reason: "" }));
  }
  close() {}
}

/** The client in this process. `take` returns what it heard since the last call, and its states. */
class InNode {
  #heard = [];
  #states = [];

  constructor(application, proxy, way) {
    const options = way === "sse" ? { WebSocket: NoWebSocket, fallback: sse } : { WebSocket: globalThis.WebSocket ?? WebSocket };
    this.client = new Signalpost(proxy.address, { user: USER, token: (why) => application.token(why), ...options });
    this.client.on("message", ({ data }) => void (data.n && this.#heard.push(data.n)));
    this.client.on("gap", () => void this.#heard.push("gap"));
    this.client.on("state", (state) => void this.#states.push(state));
  }

  take = async () => ({ heard: this.#heard.splice(0), states: this.#states.splice(0) });
  connect = async () => this.client.connect();
  flood = async (count) => {
    for (let sent = 0; sent < count; sent++) this.client.send({ sent }).catch(() => {});
  };
  dispose = async () => this.client.close();
}

class InChromium {
  static async start(application, proxy, way) {
    const client = new InChromium();
    const query = new URLSearchParams({ server: proxy.address, user: USER, way });
    client.browser = await Chromium.start(`${application.address}/?${query}`);
    await until("the page's client", () => client.browser.run("!!globalThis.client"));
    return client;
  }

  take = () => this.browser.run("({ heard: heard.splice(0), states: states.splice(0) })");
  connect = () => this.browser.run("client.connect()");
  flood = (count) => this.browser.run(`for (let sent = 0; sent < ${count}; sent++) client.send({ sent }).catch(() => {})`);
  offline = (offline) => this.browser.call("Network.emulateNetworkConditions", { offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  dispose = () => this.browser.dispose();
}

/** A whole run: its parts, what was sent, and what was heard. */
class Run {
  sent = 0;
  heard = [];
  states = [];
  gaps = 0;

  /** Publishes the next messages. */
  async publish(count) {
    for (let one = 0; one < count; one++) await this.server.tell(USER, { n: ++this.sent });
  }

  async look() {
    const { heard, states } = await this.client.take();
    this.heard.push(...heard);
    this.states.push(...states);
  }

  /** Waits until the client was in a state since the drop. */
  async reach(what, holds) {
    await until(what, async () => {
      await this.look();
      return this.states.some(holds);
    });
  }

  /** Expects what a crash costs: nothing, if there is a store. */
  forgets() {
    this.gaps = this.isStored ? 0 : 1;
    this.mayMiss = !this.isStored;
  }

  waiting = () => this.reach("the client waits", ({ name }) => name === "waiting");
  code = (code) => this.reach(`the client is closed with ${code}`, (state) => state.code === code);
}

/** Each way to drop a connection. It returns when the client has noticed; messages are published before, meanwhile and after. */
const DROPS = {
  async reset(run) {
    run.proxy.cut();
    await run.publish(2);
    await run.waiting();
  },
  async end(run) {
    run.proxy.cut("end");
    await run.publish(2);
    await run.waiting();
  },
  async silence(run) {
    run.proxy.silence();
    await run.publish(3);
    await run.waiting();
  },
  async "silence up"(run) {
    run.proxy.silence("up");
    await run.publish(3);
    await run.waiting();
  },
  async "silence down"(run) {
    run.proxy.silence("down");
    await run.publish(3);
    await run.waiting();
  },
  async "refused handshakes"(run) {
    run.proxy.mode = "503";
    run.proxy.cut();
    const before = run.proxy.arrivals.length;
    await run.publish(1);
    await until("three attempts", () => run.proxy.arrivals.length >= before + 3);
    run.proxy.mode = "pass";
  },
  async "reset handshakes"(run) {
    run.proxy.mode = "reset";
    run.proxy.cut();
    const before = run.proxy.arrivals.length;
    await run.publish(1);
    await until("three attempts", () => run.proxy.arrivals.length >= before + 3);
    run.proxy.mode = "pass";
  },
  async "a handshake without an answer"(run) {
    run.proxy.mode = "hole";
    run.proxy.cut();
    await run.publish(1);
    await run.reach("the client gives up", ({ name, reason }) => name === "waiting" && reason === "no hello in time");
    run.proxy.mode = "pass";
    run.proxy.cut();
  },
  async SIGTERM(run) {
    run.gaps = run.isStored ? 0 : 1;
    await run.publish(2);
    await run.server.end("SIGTERM");
    await run.code(1012);
    await run.server.begin();
  },
  async "kill -9"(run) {
    run.forgets();
    await run.publish(2);
    await run.server.end("SIGKILL");
    await run.server.begin();
    await run.waiting();
  },
  async "kill -9 while it waits"(run) {
    run.forgets();
    run.proxy.mode = "reset";
    run.proxy.cut();
    await run.publish(2);
    await run.waiting();
    await run.server.end("SIGKILL");
    await run.server.begin();
    run.proxy.mode = "pass";
  },
  async "an expired token"(run) {
    const release = run.application.hold();
    await run.publish(1);
    await run.code(4001);
    await run.publish(1);
    release();
  },
  async "an expired token, and then a bad one"(run) {
    const release = run.application.hold();
    await run.code(4001);
    run.application.bad = 1;
    release();
    await run.publish(1);
    await run.code(4205);
  },
  async "4100"(run) {
    run.gaps = 1;
    run.mayMiss = true;
    // More than the kernel's buffers and a mailbox hold together, without numbers, so that their order doesn't matter.
    const fill = () => Promise.all(Array.from({ length: 200 }, () => run.server.tell(USER, { filler: "x".repeat(60_000) })));
    // On a busy machine the client may find the link dead before that. Each time may be a gap.
    for (run.gapsMax = 1; run.gapsMax < 10; run.gapsMax++) {
      run.proxy.silence("down");
      await run.publish(2);
      await fill();
      run.proxy.resume();
      await run.waiting();
      if (run.states.some(({ code }) => code === 4100)) return;
      await run.reach("the client is open again", ({ name }) => name === "open");
      run.states = [];
    }
    throw new Error("no 4100 in ten tries");
  },
  async "4101"(run) {
    run.proxy.mode = "reset";
    run.proxy.cut();
    await run.publish(1);
    await until("its session is over", async () => !(await run.server.sessions(USER)).length);
    const url = `${run.server.address.replace("http", "ws")}/ws/${USER}`;
    const headers = { authorization: `Bearer ${run.application.issuer.token(USER, 60)}` };
    const others = [1, 2].map(() => new WebSocket(url, "signalpost.v1", { headers }));
    await Promise.all(others.map((other) => once(other, "open")));
    run.proxy.mode = "pass";
    await run.code(4101);
    await run.publish(1);
    others.forEach((other) => other.close());
  },
  async "4102"(run) {
    await run.client.flood(250);
    await run.publish(1);
    await run.code(4102);
  },
  async "the operator"(run) {
    await run.server.endSessions(USER);
    await run.code(4200);
    await run.publish(2);
    await run.client.connect();
  },
  async offline(run) {
    if (!run.client.offline) return DROPS.reset(run);
    await run.client.offline(true);
    run.proxy.cut();
    await run.publish(2);
    await run.waiting();
    await run.client.offline(false);
  },
};

/** Checks what was heard since the drop, and returns what is wrong, if anything. */
function wrong(run) {
  let next = run.next;
  let gaps = 0;
  let isExcused = false;
  for (const event of run.heard) {
    if (event === "gap") {
      gaps++;
      isExcused = true;
    } else if (event < next) {
      return `${event} again, or late: ${next} was next`;
    } else if (event > next && !(isExcused && run.mayMiss)) {
      return `${event} instead of ${next}`;
    } else {
      next = event + 1;
      isExcused = false;
    }
  }
  if (next !== run.sent + 1) return `the last was ${next - 1} of ${run.sent}`;
  if (gaps < run.gaps || gaps > run.gapsMax) return `${gaps} gaps instead of ${run.gaps}`;
}

async function main() {
  const options = { in: { type: "string", default: "chromium" }, way: { type: "string", default: "websocket" }, store: { type: "string", default: "os" }, drops: { type: "string", default: "10" }, seed: { type: "string", default: "1" } };
  const { positionals, values } = parseArgs({ allowPositionals: true, options });
  const drops = Number(values.drops);
  const pick = random(Number(values.seed));
  const run = new Run();
  run.isStored = values.store !== "memory";
  run.application = new Application();
  await run.application.start();
  run.server = await Server.start(positionals[0], `[auth]\norigins = ["${run.application.address}"]\n${CONFIG}`, run.application.issuer, values.store);
  run.proxy = await Proxy.start(run.server.port);
  run.client = values.in === "node" ? new InNode(run.application, run.proxy, values.way) : await InChromium.start(run.application, run.proxy, values.way);
  try {
    await run.reach("the client is open", ({ name }) => name === "open");
    await run.publish(1);
    await until("the first message", async () => (await run.look(), run.heard.length));
    const names = Object.keys(DROPS);
    let bag = [];
    for (let index = 1; index <= drops; index++) {
      // Each once before any is there twice.
      if (!bag.length) bag = [...names];
      const [name] = bag.splice(pick(bag.length), 1);
      await run.look();
      Object.assign(run, { heard: [], states: [], gaps: 0, gapsMax: undefined, mayMiss: false, next: run.sent + 1 });
      await run.publish(pick(3));
      const began = performance.now();
      await DROPS[name](run);
      run.gapsMax ??= run.gaps;
      await run.publish(1 + pick(3));
      try {
        await until("the last message", async () => (await run.look(), run.heard.at(-1) === run.sent));
      } finally {
        const fault = wrong(run);
        if (fault) throw new Error(`drop ${index} (${name}): ${fault}; heard ${run.heard.join(" ")}; states ${JSON.stringify(run.states)}`);
      }
      // A second answer would be a second gap.
      await sleep(pick(300));
      await run.look();
      const fault = wrong(run);
      if (fault) throw new Error(`drop ${index} (${name}): ${fault}`);
      const gaps = run.heard.filter((event) => event === "gap").length;
      const codes = run.states.filter(({ code }) => code).map(({ code }) => code);
      console.log(`ok  drop ${index}: ${name}; ${codes.join(" ")}; ${run.heard.length - gaps} messages, ${gaps} gaps; ${Math.round(performance.now() - began)} ms`);
    }
    console.log(`ok  ${values.in}, ${values.way}, store ${values.store}, seed ${values.seed}: ${run.sent} messages through ${drops} drops, each once or behind one gap`);
  } catch (error) {
    console.error(`${run.server.log.split("\n").slice(-20).join("\n")}\nFAILED  ${values.in}, ${values.way}, store ${values.store}, seed ${values.seed}: ${error.message}`);
    process.exitCode = 1;
  } finally {
    await run.client.dispose();
    run.proxy.close();
    await run.server.dispose();
    run.application.http.close();
    run.application.http.closeAllConnections();
  }
}

await main();
