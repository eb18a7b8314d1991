// 200 clients of a real server, whose path is in SIGNALPOST, that lose their connections at the same moment.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { WebSocket } from "ws";

import { Signalpost } from "../../dist/index.js";
import { Proxy, Server, sleep, until } from "./signalpost.js";

const CLIENTS = 200;
/** Of 200 samples of an even distribution, one in a million sets is further from it (Kolmogorov and Smirnov's test). */
const DISTANCE_MAX = 0.19;
/** What 200 handshakes may take on a busy machine. They may be late, but none is early. */
const LATE_MS = 5000;

let servers;
let proxy;
let clients;

before(async () => {
  servers = await Promise.all([1, 2].map(() => Server.start(process.env.SIGNALPOST)));
  proxy = await Proxy.start(servers[0].port);
  clients = Array.from({ length: CLIENTS }, (_, user) => new Signalpost(proxy.address, { user: `u${user}`, WebSocket }));
  await open();
});
after(async () => {
  clients.forEach((client) => client.close());
  await sleep(50);
  proxy.close();
  await Promise.all(servers.map((server) => server.dispose()));
});

const open = () => until("all are open", () => clients.every(({ state }) => state.name === "open"));

/** Drops all connections, and waits until all have come back. Returns how long each client meant to wait. */
async function waits(drop) {
  const began = performance.now();
  const waits = [];
  const offs = clients.map((client) => client.on("state", (state) => state.name === "waiting" && waits.push(state.afterMs)));
  await drop();
  await until("all have come", () => proxy.arrivals.filter((at) => at >= began).length >= CLIENTS);
  await open();
  offs.forEach((off) => off());
  const times = proxy.arrivals.filter((at) => at >= began).map((at) => at - began);
  assert.deepEqual([waits.length, times.length], [CLIENTS, CLIENTS], "each client waited once and connected once");
  for (const list of [waits, times]) list.sort((a, b) => a - b);
  times.forEach((time, index) => {
    // Timers are of whole milliseconds.
    assert.ok(time >= waits[index] - 2 && time < waits[index] + LATE_MS, `${index}: after ${time} ms instead of ${waits[index]}`);
  });
  return waits;
}

/** How far from even between two times: the greatest distance between the shares that have come by any time. */
function distance(times, from, to) {
  const share = (time) => Math.min(1, Math.max(0, (time - from) / (to - from)));
  return Math.max(...times.flatMap((time, index) => [(index + 1) / times.length - share(time), share(time) - index / times.length]));
}

test("after a lost network they come back evenly over the range of the first wait", async () => {
  await sleep(5100);
  const times = await waits(() => proxy.cut());
  assert.ok(times[0] >= 50 && times.at(-1) <= 250, `${times[0]} to ${times.at(-1)} ms`);
  assert.ok(distance(times, 50, 250) < DISTANCE_MAX, `distance ${distance(times, 50, 250)}`);
});

test("after a stop they come back evenly over the time that the server gives them", async () => {
  await sleep(5100);
  // A proxy that knows of a restart sends them to another server.
  proxy.target = servers[1].port;
  const times = await waits(() => servers[0].end("SIGTERM"));
  assert.ok(times.at(-1) < 2000, `the last after ${times.at(-1)} ms`);
  assert.ok(distance(times, 0, 2000) < DISTANCE_MAX, `distance ${distance(times, 0, 2000)}`);
});

test("while there is no server they wait longer and longer, each time evenly over the whole range", async () => {
  await sleep(5100);
  const rounds = 5;
  const waits = clients.map(() => []);
  const offs = clients.map((client, index) => client.on("state", (state) => state.name === "waiting" && waits[index].push(state.afterMs)));
  const before = proxy.arrivals.length;
  proxy.mode = "reset";
  proxy.cut();
  await until(`${rounds} waits of each`, () => waits.every(({ length }) => length >= rounds));
  const attempts = proxy.arrivals.length - before;
  offs.forEach((off) => off());
  // The first wait is for the connection that was cut. An attempt may be under way.
  const ended = waits.flatMap((list) => list.slice(1)).length;
  assert.ok(attempts >= ended && attempts <= ended + CLIENTS, `${attempts} attempts, and ${ended} waits after one`);
  for (let round = 0; round < rounds; round++) {
    const times = waits.map((list) => list[round]).sort((a, b) => a - b);
    const last = 250 * 2 ** round;
    assert.ok(times[0] >= 50 && times.at(-1) <= last, `wait ${round}: ${times[0]} to ${times.at(-1)} ms`);
    assert.ok(distance(times, 50, last) < DISTANCE_MAX, `wait ${round}: distance ${distance(times, 50, last)}`);
  }
  proxy.mode = "pass";
  await open();
});
