import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { FakeSocket, after, before, live, open, pass, settled, start } from "./fake.js";

beforeEach(before);
afterEach(after);

/** A source of tokens whose calls the test answers. */
function source() {
  const calls = [];
  const token = ({ reason }) => new Promise((resolve, reject) => calls.push({ reason, resolve, reject }));
  return { calls, token };
}

/** A source that answers at once: t1, t2 and so on. */
function counting() {
  const reasons = [];
  return { reasons, token: ({ reason }) => `t${reasons.push(reason)}` };
}

test("a token is there before the socket opens, and is its first frame, with the resume behind it", async () => {
  const { calls, token } = source();
  await start({ token });
  assert.deepEqual([calls.map(({ reason }) => reason), FakeSocket.all.length], [["connect"], 0]);
  calls[0].resolve("t1");
  await settled();
  assert.deepEqual(FakeSocket.last.sent, []);
  FakeSocket.last.onopen();
  assert.deepEqual(FakeSocket.last.sent, [{ type: "auth", token: "t1" }, { type: "resume" }]);
});

test("a token that is still good is used again, and no other is asked for", async () => {
  const { reasons, token } = counting();
  const { socket } = await open({ token }, { token_ends_in_ms: 600_000 });
  socket.end(1012);
  await pass(100);
  FakeSocket.last.end(1006);
  await pass(500);
  FakeSocket.last.hello();
  assert.deepEqual([FakeSocket.last.of("auth"), reasons], [[{ type: "auth", token: "t1" }], ["connect"]]);
});

test("another token is sent before the end, and the answer says when the next one is due", async () => {
  const { reasons, token } = counting();
  const { client, socket } = await open({ token }, { token_ends_in_ms: 600_000 });
  // 10 % of it, and as much again by chance.
  await live(socket, 479_999);
  assert.deepEqual(reasons, ["connect"]);
  await pass(1);
  assert.deepEqual([reasons, socket.of("auth").at(-1)], [["connect", "expiring"], { type: "auth", token: "t2" }]);
  socket.say({ type: "auth", data: { token_ends_in_ms: 20_000 } });
  await pass(9999);
  assert.equal(reasons.length, 2);
  await pass(1);
  assert.equal(reasons.length, 3);
  assert.equal(client.state.name, "open");
  socket.say({ type: "auth", data: {} });
  await pass(9000);
  assert.equal(reasons.length, 3, "a token without an end");
});

test("a token of a few seconds is renewed at half of its life", async () => {
  const { reasons, token } = counting();
  await open({ token }, { token_ends_in_ms: 6000 });
  await pass(2999);
  assert.equal(reasons.length, 1);
  await pass(1);
  assert.equal(reasons.length, 2);
});

test("no token is asked for while there is no connection to renew it for", async () => {
  const { reasons, token } = counting();
  const { client, socket } = await open({ token }, { token_ends_in_ms: 20_000 });
  socket.end(1006);
  await pass(250);
  await pass(9900);
  assert.deepEqual([client.state.name, reasons.length], ["connecting", 1]);
});

test("a token that is short, or the same again and again, makes no storm of calls", async () => {
  const { reasons, token } = counting();
  const { client, socket } = await open({ token }, { token_ends_in_ms: 3000 });
  for (let left = 2900; left > -2000; left -= 100) {
    await pass(100);
    if (socket.of("auth").length < reasons.length) socket.say({ type: "auth", data: { token_ends_in_ms: Math.max(0, left) } });
  }
  assert.ok(reasons.length >= 2 && reasons.length <= 5, String(reasons.length));
  client.close();
});

test("a token that ends beyond all timers, or says nonsense, is not asked for at once", async () => {
  for (const token_ends_in_ms of [2 ** 40, 1e300, 0, -1, null, "x"]) {
    const { reasons, token } = counting();
    const { client } = await open({ token }, { token_ends_in_ms });
    await pass(20_000);
    assert.deepEqual(reasons, ["connect"], String(token_ends_in_ms));
    client.close();
  }
});

test("after 4001 another token is asked for", async () => {
  const { reasons, token } = counting();
  const { socket } = await open({ token }, { token_ends_in_ms: 600_000 });
  socket.end(4001);
  await pass(100);
  FakeSocket.last.onopen();
  assert.deepEqual([reasons, FakeSocket.last.of("auth")], [["connect", "expiring"], [{ type: "auth", token: "t2" }]]);
});

test("a token that is due is not shown to another connection", async () => {
  const { reasons, token } = counting();
  const { socket } = await open({ token }, { token_ends_in_ms: 20_000 });
  socket.end(1013);
  // The page slept: the wait took longer than the token lived.
  await pass(249);
  Date.now = ((now) => () => now + 3_600_000)(Date.now());
  await pass(1);
  assert.deepEqual(reasons, ["connect", "expiring"]);
});

test("after 4205 the client asks once for another one, and stops at a second 4205", async () => {
  const { reasons, token } = counting();
  const { client } = await start({ token });
  FakeSocket.last.end(4205, "no valid token");
  assert.deepEqual(client.state, { name: "waiting", afterMs: 100, code: 4205, reason: "no valid token" });
  await pass(100);
  assert.deepEqual(reasons, ["connect", "refused"]);
  FakeSocket.last.end(4205, "no valid token");
  assert.deepEqual(client.state, { name: "stopped", code: 4205, reason: "no valid token" });
  await pass(60_000);
  assert.equal(FakeSocket.all.length, 2);
});

test("a token that the server accepted may be refused once more later", async () => {
  const { reasons, token } = counting();
  const { client, socket } = await open({ token });
  for (const expected of [2, 3]) {
    FakeSocket.last.end(4205);
    await pass(500);
    FakeSocket.last.hello();
    assert.deepEqual([client.state.name, reasons.length], ["open", expected]);
    await pass(5000);
    FakeSocket.last.say({ type: "pong" });
  }
  assert.notEqual(FakeSocket.last, socket);
});

test("the same token again after 4205 stops the client, without another connection", async () => {
  const { client } = await start({ token: () => "same" });
  FakeSocket.last.end(4205);
  await pass(100);
  assert.deepEqual([client.state.name, client.state.code, FakeSocket.all.length], ["stopped", 4205, 1]);
  client.connect();
  await settled();
  assert.equal(FakeSocket.all.length, 2, "a person has changed something");
});

test("a refused token is still refused if the connection after it was lost", async () => {
  const { reasons, token } = counting();
  const { client } = await start({ token });
  FakeSocket.last.end(4205);
  await pass(100);
  FakeSocket.last.end(1006);
  await pass(500);
  FakeSocket.last.onopen();
  assert.deepEqual([FakeSocket.last.of("auth")[0].token, reasons], ["t2", ["connect", "refused"]]);
  FakeSocket.last.end(4205);
  assert.equal(client.state.name, "stopped");
});

test("without a source of tokens, 4205 stops the client", async () => {
  const { client } = await start();
  FakeSocket.last.end(4205);
  assert.equal(client.state.name, "stopped");
});

test("no token stops the client, whether for a connection or for one that is open", async () => {
  for (const nothing of [null, undefined, ""]) {
    const { client } = await start({ token: async () => nothing });
    assert.deepEqual([client.state.name, client.state.code, FakeSocket.all.length], ["stopped", 4205, 0]);
  }
  const tokens = ["t1", null];
  const { client, socket } = await open({ token: () => tokens.shift() }, { token_ends_in_ms: 20_000 });
  await pass(10_000);
  assert.deepEqual([client.state.name, client.state.code], ["stopped", 4205]);
  await pass(0);
  assert.equal(socket.closed, 1000);
});

test("a source that fails is asked again, with longer and longer waits", async () => {
  let calls = 0;
  const token = () => {
    calls++;
    throw new Error("no network");
  };
  const { client } = await start({ token });
  assert.deepEqual(client.state, { name: "waiting", afterMs: 250, code: 1006, reason: "no token: Error: no network" });
  await pass(250);
  assert.deepEqual([client.state.afterMs, calls], [500, 2]);
});

test("a source that fails for an open connection is told, and asked again before the end", async () => {
  const answers = [() => "t1", () => Promise.reject(new Error("no network")), () => "t2"];
  const { client, socket, errors } = await open({ token: () => answers.shift()() }, { token_ends_in_ms: 60_000 });
  await live(socket, 50_000);
  assert.deepEqual([client.state.name, errors, socket.of("auth").length], ["open", ["token"], 1]);
  await pass(5000);
  assert.equal(socket.of("auth").at(-1).token, "t2");
});

test("a token that the open session refuses is told, and another one is asked for", async () => {
  const { reasons, token } = counting();
  const { client, socket, errors } = await open({ token }, { token_ends_in_ms: 60_000 });
  await live(socket, 50_000);
  socket.say({ type: "error", data: { code: "unauthorized", detail: "no" } });
  assert.deepEqual([client.state.name, errors], ["open", ["unauthorized"]]);
  await pass(5000);
  assert.equal(reasons.length, 3);
});

test("one call is under way at a time, also over several connections", async () => {
  const { calls, token } = source();
  const { client } = await start({ token });
  calls[0].resolve("t1");
  await settled();
  FakeSocket.last.hello({ token_ends_in_ms: 20_000 });
  await pass(10_000);
  assert.equal(calls.length, 2);
  const first = FakeSocket.last;
  // The connection ends while the call is under way; the next one waits for the same call.
  first.end(4001);
  await pass(100);
  assert.deepEqual([client.state.name, calls.length], ["connecting", 2]);
  calls[1].resolve("t2");
  await settled();
  FakeSocket.last.onopen();
  assert.deepEqual([FakeSocket.last.sent[0], first.of("auth").length], [{ type: "auth", token: "t2" }, 1]);
});

test("a renewal that comes after its connection is not followed by another one", async () => {
  const { calls, token } = source();
  const { client } = await start({ token });
  calls[0].resolve("t1");
  await settled();
  FakeSocket.last.hello({ token_ends_in_ms: 20_000 });
  await pass(10_000);
  FakeSocket.last.end(1006);
  calls[1].resolve("t2");
  await pass(250);
  await pass(9900);
  assert.deepEqual([client.state.name, calls.length], ["connecting", 2]);
});

test("a call that never ends is given up after 30 s, and what it brings later is thrown away", async () => {
  const { calls, token } = source();
  const { client } = await start({ token });
  await pass(29_999);
  assert.equal(client.state.name, "connecting");
  await pass(1);
  assert.equal(client.state.reason, "no token: no token in time");
  await pass(250);
  assert.equal(calls.length, 2);
  calls[0].resolve("late");
  await settled();
  assert.equal(FakeSocket.all.length, 0);
  calls[1].resolve("t2");
  await settled();
  FakeSocket.last.onopen();
  assert.equal(FakeSocket.last.sent[0].token, "t2");
});

test("a token that comes after close() opens nothing, also if the client connects again", async () => {
  const { calls, token } = source();
  const { client } = await start({ token });
  client.close();
  calls[0].resolve("late");
  await pass(1000);
  assert.equal(FakeSocket.all.length, 0);
  client.connect();
  await settled();
  assert.equal(calls.length, 2);
});

test("a token that no server has accepted is used for a minute, over several attempts", async () => {
  const { reasons, token } = counting();
  await start({ token });
  for (let elapsed = 0; elapsed < 59_000; elapsed += 1000) {
    FakeSocket.last.end(1006);
    await pass(1000);
  }
  assert.deepEqual(reasons, ["connect"]);
  FakeSocket.last.end(1006);
  await pass(11_000);
  assert.deepEqual(reasons, ["connect", "expiring"]);
});

test("after 4205, another token is tried soon, also after many failures", async () => {
  const { token } = counting();
  const { client } = await start({ token });
  for (let failures = 0; failures < 5; failures++) {
    FakeSocket.last.end(1006);
    await pass(5000);
  }
  FakeSocket.last.end(4205);
  assert.equal(client.state.afterMs, 100);
});
