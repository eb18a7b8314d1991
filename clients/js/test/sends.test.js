import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { FakeSocket, LIMITS, after, before, open, pass, settled, start } from "./fake.js";

beforeEach(before);
afterEach(after);

/** Says how a promise settled, or that it has not. */
function outcome(promise) {
  const state = { now: "open" };
  promise.then(() => (state.now = "taken"), (error) => (state.now = error.code));
  return state;
}

test("a message is settled by its id: taken, or refused with the server's reason", async () => {
  const { client, socket, errors } = await open();
  const first = outcome(client.send({ text: "hi" }));
  const refused = client.send(null);
  const third = outcome(client.send());
  assert.deepEqual(socket.of("message"), [
    { type: "message", id: "1", want: "taken", data: { text: "hi" } },
    { type: "message", id: "2", want: "taken", data: null },
    { type: "message", id: "3", want: "taken", data: null },
  ]);
  socket.say({ type: "taken", id: "3" });
  socket.say({ type: "taken", id: "4" });
  socket.say({ type: "error", id: "2", data: { code: "unhandled", detail: "nobody" } });
  await assert.rejects(refused, { name: "SignalpostError", code: "unhandled", detail: "nobody", message: "unhandled: nobody" });
  await settled();
  assert.deepEqual([first.now, third.now, errors], ["open", "taken", []]);
});

test("messages wait for a connection, and keep their order", async () => {
  const { client } = await start();
  client.send(1);
  client.send(2);
  FakeSocket.last.onopen();
  assert.deepEqual(FakeSocket.last.of("message"), [], "a token may still be refused");
  FakeSocket.last.hello();
  client.send(3);
  assert.deepEqual(FakeSocket.last.of("message").map(({ data }) => data), [1, 2, 3]);
});

test("a message whose answer was lost is not sent again; one that was not sent is", async () => {
  const { client, socket } = await open();
  const sent = outcome(client.send(1));
  socket.end(1006);
  const waiting = outcome(client.send(2));
  await pass(250);
  assert.deepEqual([sent.now, waiting.now], ["lost", "open"]);
  FakeSocket.last.hello();
  assert.deepEqual(FakeSocket.last.of("message").map(({ id, data }) => [id, data]), [["2", 2]]);
  FakeSocket.last.say({ type: "taken", id: "2" });
  await settled();
  assert.equal(waiting.now, "taken");
});

test("a server that answers no messages settles them when they are written, and its errors are told", async () => {
  const { client, errors } = await start();
  const before = outcome(client.send(1));
  const socket = FakeSocket.last;
  socket.onopen();
  socket.say({ type: "hello", data: { session: "s", epoch: "e1", seq: 0, limits: LIMITS } });
  await settled();
  assert.equal(before.now, "open", "it may still answer");
  socket.say({ type: "error", data: { code: "unhandled", detail: "nobody" } });
  socket.say({ type: "error", data: { code: "invalid_frame", detail: "unknown `type`" } });
  await settled();
  assert.equal(before.now, "taken");
  const later = outcome(client.send(2));
  await settled();
  assert.deepEqual([later.now, errors, socket.of("message").length], ["taken", ["unhandled"], 2]);
  await pass(25_000);
  socket.say({ type: "error", data: { code: "invalid_frame", detail: "unknown `type`" } });
  assert.deepEqual(errors, ["unhandled"], "that was the answer to a ping");
  socket.say({ type: "error", data: { code: "invalid_frame", detail: "unknown `type`" } });
  assert.deepEqual(errors, ["unhandled", "invalid_frame"], "and that was not");
});

test("a pong settles nothing", async () => {
  const { client, socket } = await open();
  const sent = outcome(client.send(1));
  socket.say({ type: "pong" });
  await settled();
  assert.equal(sent.now, "open");
});

test("whether messages are answered is asked of each connection, since the server may be a newer one", async () => {
  const { client } = await start();
  FakeSocket.last.onopen();
  FakeSocket.last.say({ type: "hello", data: { session: "s", epoch: "e1", seq: 0, limits: LIMITS } });
  FakeSocket.last.say({ type: "error", data: { code: "invalid_frame", detail: "unknown `type`" } });
  FakeSocket.last.end(1006);
  const sent = outcome(client.send(1));
  await pass(250);
  FakeSocket.last.hello();
  await settled();
  assert.equal(sent.now, "open");
  FakeSocket.last.say({ type: "taken", id: "1" });
  await settled();
  assert.equal(sent.now, "taken");
});

test("a server that answers pings is not taken for one that doesn't", async () => {
  const { client, socket, errors } = await open();
  const sent = outcome(client.send(1));
  socket.say({ type: "error", data: { code: "invalid_frame", detail: "something else" } });
  await settled();
  assert.deepEqual([sent.now, errors], ["open", ["invalid_frame"]]);
});

test("a message over the server's limit is refused here, since the server would close the connection", async () => {
  const { client, socket } = await open({}, { limits: { ...LIMITS, message_bytes_max: 100 } });
  const frame = (data) => Buffer.byteLength(JSON.stringify({ type: "message", id: "1", want: "taken", data }));
  const fits = "ü".repeat((100 - frame("")) / 2);
  assert.ok([99, 100].includes(frame(fits)));
  const whole = outcome(client.send(fits));
  await assert.rejects(client.send(`${fits}ü`), { code: "too_large" });
  assert.deepEqual([whole.now, socket.of("message").length], ["open", 1]);
});

test("256 messages may wait, and the next is refused at once", async () => {
  const { client } = await start();
  const waiting = Array.from({ length: 256 }, (_, number) => client.send(number));
  await assert.rejects(client.send("more"), { code: "full" });
  FakeSocket.last.hello();
  assert.equal(FakeSocket.last.of("message").length, 256);
  FakeSocket.last.say({ type: "taken", id: "1" });
  await waiting[0];
  client.send("again").catch(() => {});
  assert.equal(FakeSocket.last.of("message").length, 257);
  client.close();
  await Promise.allSettled(waiting);
});

test("a client that stops refuses what waits, and what comes later", async () => {
  const { client, socket } = await open();
  const sent = outcome(client.send(1));
  socket.end(1006);
  const waiting = outcome(client.send(2));
  client.close();
  const later = outcome(client.send(3));
  await settled();
  assert.deepEqual([sent.now, waiting.now, later.now], ["lost", "stopped", "stopped"]);
});

test("what is not JSON is refused, and the client goes on", async () => {
  const { client, socket } = await open();
  await assert.rejects(client.send(1n), TypeError);
  client.send(2).catch(() => {});
  assert.deepEqual(socket.of("message").map(({ data }) => data), [2]);
});
