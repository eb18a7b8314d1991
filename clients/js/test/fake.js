// A socket whose server is the test, and a clock that the test turns.

import { mock } from "node:test";

import { Signalpost } from "../dist/index.js";

export const LIMITS = { message_bytes_max: 65_536, ping_interval_ms: 25_000, pong_deadline_ms: 10_000 };

export class FakeSocket {
  static all = [];
  sent = [];

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    FakeSocket.all.push(this);
  }

  static get last() {
    return FakeSocket.all.at(-1);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closed = code;
  }

  /** What was sent of this type. */
  of(type) {
    return this.sent.filter((frame) => frame.type === type);
  }

  say(frame) {
    this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }

  hello(data = {}) {
    this.onopen();
    this.say({ type: "hello", data: { session: "s", user: "1001", epoch: "e1", seq: 0, limits: LIMITS, ...data } });
    this.say({ type: "pong" });
  }

  /** Answers the resume. */
  resumed(recovered, from) {
    this.say({ type: "resume", data: { recovered, from } });
  }

  message(seq, data = seq) {
    this.say({ seq, type: "message", data });
  }

  end(code, reason = "") {
    this.onclose?.({ code, reason });
  }
}

/** Lets promises settle. The clock stands still. */
export async function settled() {
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** A clock that stands still until the test turns it. Node's own (`mock.timers`) loses timers when others are cleared. */
class Clock {
  #real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout, now: Date.now };
  #timers = new Map();
  #ids = 0;
  #now = 1_000_000;

  start() {
    globalThis.setTimeout = (then, ms = 0) => {
      this.#timers.set(++this.#ids, { at: this.#now + ms, then });
      return this.#ids;
    };
    globalThis.clearTimeout = (id) => void this.#timers.delete(id);
    Date.now = () => this.#now;
  }

  stop() {
    Object.assign(globalThis, { setTimeout: this.#real.setTimeout, clearTimeout: this.#real.clearTimeout });
    Date.now = this.#real.now;
  }

  /** Lets what is due happen in its order, and at its time. */
  tick(ms) {
    const end = this.#now + ms;
    for (;;) {
      const [id, timer] = [...this.#timers].reduce((first, one) => (one[1].at < first[1].at ? one : first), [0, { at: end + 1 }]);
      if (!id) break;
      this.#timers.delete(id);
      this.#now = timer.at;
      timer.then();
    }
    this.#now = end;
  }
}

let clock;

/** Turns the clock, and lets settle what that brings. */
export async function pass(ms) {
  await settled();
  clock.tick(ms);
  await settled();
}

/** Turns the clock while the server shows that it is there. */
export async function live(socket, ms) {
  for (let left = ms; left > 0; left -= 20_000) {
    await pass(Math.min(left, 20_000));
    socket.say({ type: "pong" });
  }
}

/** Chance is 1 unless a test says otherwise: all waits are at their longest. */
export let chance;

export function before() {
  FakeSocket.all = [];
  chance = mock.method(Math, "random", () => 1).mock;
  clock = new Clock();
  clock.start();
}

export function after() {
  clock.stop();
  mock.restoreAll();
}

/** Starts a client, and notes what it says. */
export async function start(options = {}) {
  const client = new Signalpost("wss://example.com/api/pool", { user: "1001", WebSocket: FakeSocket, ...options });
  const seen = { messages: [], gaps: [], states: [], errors: [], events: [] };
  client.on("message", ({ data }) => (seen.messages.push(data), seen.events.push(data)) && undefined);
  client.on("gap", (gap) => (seen.gaps.push(gap), seen.events.push("gap")) && undefined);
  client.on("state", (state) => seen.states.push(state));
  client.on("error", (error) => seen.errors.push(error.code));
  await settled();
  return { client, ...seen };
}

/** Starts a client that is open and has resumed. */
export async function open(options, hello) {
  const started = await start(options);
  FakeSocket.last.hello(hello);
  FakeSocket.last.resumed(true, 0);
  await settled();
  return { ...started, socket: FakeSocket.last };
}

/** Returns the next error that nobody handles. The runner's own listeners, which fail the test, don't hear of it. */
export async function unhandled() {
  const others = process.listeners("unhandledRejection");
  process.removeAllListeners("unhandledRejection");
  const error = await new Promise((resolve) => process.once("unhandledRejection", resolve));
  others.forEach((listener) => process.on("unhandledRejection", listener));
  return error;
}
