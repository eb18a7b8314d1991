// The client with a real server, whose path is in SIGNALPOST.

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";

import { WebSocket } from "ws";

import { Signalpost } from "../../dist/index.js";
import { Issuer, Proxy, Server, until } from "./signalpost.js";

const { SIGNALPOST } = process.env;
const issuer = new Issuer();
let server;
let proxy;
const clients = [];

before(async () => {
  server = await Server.start(SIGNALPOST);
  proxy = await Proxy.start(server.port);
});
afterEach(() => clients.splice(0).forEach((client) => client.close()));
after(async () => {
  proxy.close();
  await server.dispose();
});

function start(user, options = {}, address = proxy.address) {
  const client = new Signalpost(address, { user, WebSocket, ...options });
  const events = [];
  client.on("message", ({ data }) => events.push(data) && undefined);
  client.on("gap", () => events.push("gap"));
  clients.push(client);
  const isOpen = () => until("the client is open", () => client.state.name === "open");
  return { client, events, isOpen };
}

test("a new user's client opens without a gap, and hears what is sent", async () => {
  const user = "Jürgen M/?";
  const { events, isOpen } = start(user);
  await isOpen();
  await server.tell(user, { n: 1 });
  await until("the message", () => events.length);
  assert.deepEqual(events, [{ n: 1 }]);
});

test("what was sent before the first connection is heard, and a cut at once loses none of it", async () => {
  for (let n = 1; n <= 5; n++) await server.tell("early", n);
  const { events } = start("early");
  await until("the first", () => events.length);
  proxy.cut();
  await server.tell("early", 6);
  await until("the last", () => events.at(-1) === 6);
  assert.deepEqual(events, [1, 2, 3, 4, 5, 6]);
});

test("what was acked is not sent to the next client, and what was not acked is", async () => {
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

test("a restart by SIGTERM and one by kill -9 each are one gap, since mailboxes are in memory", async () => {
  const { client, events, isOpen } = start("restarts");
  const states = [];
  client.on("state", (state) => states.push(state));
  await isOpen();
  await server.tell("restarts", 1);
  await until("the first", () => events.length === 1);
  for (const [signal, code] of [["SIGTERM", 1012], ["SIGKILL", 1006]]) {
    states.length = 0;
    await server.end(signal);
    await server.begin();
    await server.tell("restarts", signal);
    await until("what came after it", () => events.at(-1) === signal);
    assert.equal(states.find(({ name }) => name === "waiting").code, code);
  }
  assert.deepEqual(events, [1, "gap", "SIGTERM", "gap", "SIGKILL"]);
});

test("the operator's end stops the client, and connect() goes on after the last message", async () => {
  const { client, events, isOpen } = start("operator");
  await isOpen();
  await server.tell("operator", 1);
  await until("the first", () => events.length === 1);
  await server.endSessions("operator");
  await until("the stop", () => client.state.name === "stopped");
  assert.equal(client.state.code, 4200);
  await server.tell("operator", 2);
  client.connect();
  await until("the second", () => events.length === 2);
  assert.deepEqual(events, [1, 2]);
});

test("a message that no policy takes is heard of, and the client goes on", async () => {
  const { client, events, isOpen } = start("sender");
  const errors = [];
  client.on("error", ({ code }) => errors.push(code));
  await isOpen();
  await assert.rejects(client.send({ type: "nothing" }), { code: "unhandled" });
  await server.tell("sender", 1);
  await until("the message", () => events.length);
  assert.deepEqual(errors, [], "it was refused by its id");
});

test("a message that a policy takes settles when its events are committed, and its reader has it", async () => {
  await server.publish("pooling.match.found", { request_id: 42, rider_id: "rider", driver_id: "driver", pool_id: 7 });
  const driver = start("driver");
  const { client, isOpen } = start("rider");
  await isOpen();
  const texts = ["one", "two", "three"];
  await Promise.all(texts.map((text) => client.send({ type: "chat", pool_id: 7, text })));
  await assert.rejects(client.send({ type: "chat", pool_id: 8, text: "to strangers" }), ({ code }) => code !== "lost" && code !== "unhandled");
  await until("the chat", () => driver.events.length >= 4);
  assert.deepEqual(driver.events.map(({ text }) => text), [undefined, ...texts]);
});

test("pings are answered", async () => {
  const limited = await Server.start(SIGNALPOST, "[sockets]\nping_interval_ms = 1000\npong_deadline_ms = 1000");
  const { client, isOpen } = start("quiet", {}, `${limited.address.replace("http", "ws")}`);
  await isOpen();
  const states = [];
  client.on("state", (state) => states.push(state));
  await new Promise((resolve) => setTimeout(resolve, 4500));
  client.close();
  await limited.dispose();
  assert.deepEqual(states.map(({ name }) => name), ["stopped"]);
});

test("tokens are shown, renewed and asked for again, and a bad one stops the client", async () => {
  const locked = await Server.start(SIGNALPOST, "", issuer);
  const address = locked.address.replace("http", "ws");
  const reasons = [];
  const token = ({ reason }) => {
    reasons.push(reason);
    return issuer.token("locked", 3);
  };
  const good = start("locked", { token }, address);
  const states = [];
  good.client.on("state", ({ name }) => states.push(name));
  await good.isOpen();
  await new Promise((resolve) => setTimeout(resolve, 7000));
  assert.deepEqual(states.filter((name) => name !== "connecting"), ["open"], "it was renewed twice, over one connection");
  assert.ok(reasons.length >= 3 && reasons.length <= 8, reasons.join());
  await locked.tell("locked", 1);
  await until("the message", () => good.events.length);

  const asked = [];
  const bad = start("locked", { token: ({ reason }) => asked.push(reason) && new Issuer().token("locked", 60) }, address);
  await until("the stop", () => bad.client.state.name === "stopped");
  assert.deepEqual([bad.client.state.code, asked], [4205, ["connect", "refused"]]);
  const none = start("locked", {}, address);
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.notEqual(none.client.state.name, "open");
  clients.splice(0).forEach((client) => client.close());
  await locked.dispose();
});
