// The client's fallback to server-sent events, with a real server, whose path is in SIGNALPOST, in Node and in Chromium.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, afterEach, before, test } from "node:test";

import { Signalpost } from "../../dist/index.js";
import { sse } from "../../dist/sse.js";
import { Chromium } from "./chromium.js";
import { Issuer, Proxy, Server, sleep, until } from "./signalpost.js";

const { SIGNALPOST } = process.env;
const issuer = new Issuer();
let server;
let proxy;
const clients = [];

/** A network that lets no WebSocket through. */
class NoWebSocket {
  constructor() {
    setTimeout(() => this.onclose({ code: 1006, reason: "" }));
  }
  close() {}
}

before(async () => {
  server = await Server.start(SIGNALPOST);
  proxy = await Proxy.start(server.port);
});
afterEach(() => clients.splice(0).forEach((client) => client.close()));
after(async () => {
  proxy.close();
  await server.dispose();
});

/** A page of this origin, once it is loaded. */
async function page(origin) {
  const browser = await Chromium.start(`${origin}/`);
  await until("the page", () => browser.run("document.title === 'SSE'").catch(() => false));
  return browser;
}

function start(user, options = {}, address = proxy.address) {
  const client = new Signalpost(address, { user, WebSocket: NoWebSocket, fallback: sse, ...options });
  const events = [];
  client.on("message", ({ data }) => events.push(data) && undefined);
  client.on("gap", () => events.push("gap"));
  clients.push(client);
  const isOpen = () => until("the client is open", () => client.state.name === "open");
  return { client, events, isOpen };
}

test("messages come by server-sent events, and each once over lost connections", async () => {
  const user = "Jürgen M/?";
  const { events, isOpen } = start(user);
  await isOpen();
  for (let n = 1; n <= 20; n++) {
    await server.tell(user, n);
    if (n % 5 === 0) proxy.cut(n % 2 ? "reset" : "end");
  }
  await until("all", () => events.at(-1) === 20);
  assert.deepEqual(events, Array.from({ length: 20 }, (_, index) => index + 1));
});

test("what was acked before the end is not sent to the next client, and what was not acked is", async () => {
  const first = start("acks", { ack: "manual" });
  first.client.on("message", ({ data, ack }) => data === 2 && ack());
  await first.isOpen();
  for (let n = 1; n <= 3; n++) await server.tell("acks", n);
  await until("three messages", () => first.events.length === 3);
  first.client.close();
  await until("it has left", async () => !(await server.sessions("acks")).length);
  const { events } = start("acks");
  await server.tell("acks", 4);
  await until("the last", () => events.at(-1) === 4);
  assert.deepEqual(events, [3, 4]);
});

test("a message settles when its events are committed, or by its refusal", async () => {
  await server.publish("pooling.match.found", { request_id: 42, rider_id: "rider", driver_id: "driver", pool_id: 7 });
  const driver = start("driver");
  const { client, isOpen } = start("rider");
  await isOpen();
  const texts = ["one", "two", "three"];
  await Promise.all(texts.map((text) => client.send({ type: "chat", pool_id: 7, text })));
  await assert.rejects(client.send({ type: "nothing" }), { code: "unhandled" });
  await until("the chat", () => driver.events.length >= 4);
  assert.deepEqual(driver.events.map(({ text }) => text), [undefined, ...texts]);
});

test("a restart is one gap, since mailboxes are in memory, and the operator's end stops the client", async () => {
  const { client, events, isOpen } = start("restarts");
  const states = [];
  client.on("state", (state) => states.push(state));
  await isOpen();
  await server.tell("restarts", 1);
  await until("the first", () => events.length === 1);
  await server.end("SIGTERM");
  await server.begin();
  await server.tell("restarts", 2);
  await until("what came after it", () => events.at(-1) === 2);
  assert.equal(states.find(({ name, code }) => name === "waiting" && code !== 1006).code, 1012);
  assert.deepEqual(events, [1, "gap", 2]);
  await until("it is open again", () => client.state.name === "open");
  await server.endSessions("restarts");
  await until("the stop", () => client.state.name === "stopped");
  assert.equal(client.state.code, 4200);
});

test("tokens are shown and renewed over one stream, and a bad one stops the client", async () => {
  const locked = await Server.start(SIGNALPOST, "", issuer);
  const good = start("locked", { token: () => issuer.token("locked", 3) }, locked.address);
  await good.isOpen();
  const states = [];
  good.client.on("state", ({ name }) => states.push(name));
  await sleep(7000);
  assert.deepEqual(states, [], "it was renewed twice, over one stream");
  await assert.rejects(good.client.send({ type: "nothing" }), { code: "unhandled" });
  await locked.tell("locked", 1);
  await until("the message", () => good.events.length);

  const asked = [];
  const bad = start("locked", { token: ({ reason }) => asked.push(reason) && new Issuer().token("locked", 60) }, locked.address);
  await until("the stop", () => bad.client.state.name === "stopped");
  assert.deepEqual([bad.client.state.code, asked], [4205, ["connect", "refused"]]);
  clients.splice(0).forEach((client) => client.close());
  await locked.dispose();
});

test("a page of another origin that is listed may read and write, and one that is not may not", async () => {
  const file = (path) => readFileSync(new URL(`../..${path}`, import.meta.url));
  const http = createServer((request, response) => {
    if (!request.url.startsWith("/dist/")) return response.setHeader("content-type", "text/html").end("<!doctype html><title>SSE</title>");
    response.setHeader("content-type", "text/javascript").end(file(request.url));
  }).listen(0, "127.0.0.1");
  await once(http, "listening");
  const origin = `http://127.0.0.1:${http.address().port}`;
  const open = await Server.start(SIGNALPOST, `[auth]\norigins = ["${origin}"]`, issuer);
  const closed = await Server.start(SIGNALPOST, `[auth]\norigins = ["https://other.example.com"]`);
  const browser = await page(origin);
  try {
    const token = issuer.token("page", 60);
    const refused = await browser.run(`(async () => {
      const { Signalpost } = await import("/dist/index.js");
      const { sse } = await import("/dist/sse.js");
      class NoWebSocket { constructor() { setTimeout(() => this.onclose({ code: 1006, reason: "" })); } close() {} }
      const options = { user: "page", WebSocket: NoWebSocket, fallback: sse };
      globalThis.heard = [];
      const client = new Signalpost("${open.address}", { ...options, token: () => "${token}" });
      client.on("message", ({ data }) => void heard.push(data));
      globalThis.answered = client.send({ type: "nothing" }).catch(({ code }) => code);
      const stranger = new EventSource("${closed.address}/sse/page");
      return new Promise((resolve) => (stranger.onerror = () => resolve(stranger.readyState === EventSource.CLOSED)));
    })()`);
    assert.equal(refused, true, "the browser gives up");
    assert.equal(await browser.run("answered"), "unhandled");
    await open.tell("page", { n: 1 });
    await until("the message", () => browser.run("heard.length"));
    assert.deepEqual(await browser.run("heard"), [{ n: 1 }]);
  } finally {
    await browser.dispose();
    await Promise.all([open.dispose(), closed.dispose()]);
    http.closeAllConnections();
    http.close();
  }
});

test("a browser's own EventSource resumes by itself after a lost connection", async () => {
  const http = createServer((_, response) => response.setHeader("content-type", "text/html").end("<!doctype html><title>SSE</title>")).listen(0, "127.0.0.1");
  await once(http, "listening");
  const origin = `http://127.0.0.1:${http.address().port}`;
  const own = await Server.start(SIGNALPOST, `[auth]\norigins = ["${origin}"]`);
  const way = await Proxy.start(own.port);
  const browser = await page(origin);
  try {
    await browser.run(`(async () => {
      globalThis.heard = [];
      const source = new EventSource("${way.address.replace("ws", "http")}/sse/page");
      source.onmessage = ({ data }) => heard.push(JSON.parse(data).data);
      return new Promise((resolve) => (source.onopen = () => resolve()));
    })()`);
    for (let n = 1; n <= 6; n++) {
      await own.tell("page", n);
      await until("the message", () => browser.run(`heard.length >= ${n % 3 ? n : 0}`));
      if (n % 3 === 0) way.cut();
    }
    await until("all", () => browser.run("heard.length >= 6"));
    assert.deepEqual(await browser.run("heard"), [1, 2, 3, 4, 5, 6]);
  } finally {
    await browser.dispose();
    way.close();
    await own.dispose();
    http.closeAllConnections();
    http.close();
  }
});
