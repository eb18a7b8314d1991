import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { after, before, open, pass, settled } from "./fake.js";

beforeEach(before);
afterEach(after);

/** Reads messages until there are no more, without waiting for its caller. */
function read(loop) {
  const heard = [];
  const over = (async () => {
    for await (const { data } of loop) heard.push(data);
    return "over";
  })();
  over.catch(() => {});
  return { heard, over };
}

test("a loop hears every message from its call on, over several connections", async () => {
  const { client, socket } = await open();
  socket.message(1);
  const loop = client.messages();
  socket.message(2);
  socket.message(3);
  const { heard, over } = read(loop);
  await settled();
  socket.message(4);
  await settled();
  assert.deepEqual(heard, [2, 3, 4]);
  client.close();
  assert.equal(await over, "over");
});

test("a message is acked when the next one is asked for", async () => {
  const { client, socket } = await open();
  const loop = client.messages();
  for (const seq of [1, 2, 3]) socket.message(seq);
  assert.equal((await loop.next()).value.data, 1);
  await pass(1000);
  assert.deepEqual(socket.of("ack"), []);
  await loop.next();
  await pass(1000);
  assert.deepEqual(socket.of("ack"), [{ type: "ack", seq: 1 }]);
});

test("what a loop didn't get to is not acked", async () => {
  const { client, socket } = await open();
  const loop = client.messages();
  for (const seq of [1, 2, 3]) socket.message(seq);
  for await (const { seq } of loop) if (seq === 2) break;
  await pass(1000);
  client.close();
  await pass(0);
  assert.deepEqual(socket.of("ack"), [{ type: "ack", seq: 1 }]);
});

test("a loop that was left takes no more messages", async () => {
  const { client, socket } = await open();
  const loop = client.messages();
  socket.message(1);
  for await (const _ of loop) break;
  for (let seq = 2; seq < 2000; seq++) socket.message(seq);
  assert.deepEqual(await loop.next(), { value: undefined, done: true });
});

test("a signal ends a loop, before it begins or while it waits", async () => {
  const { client, socket } = await open();
  assert.equal(await read(client.messages({ signal: AbortSignal.abort() })).over, "over");
  const stop = new AbortController();
  const { heard, over } = read(client.messages({ signal: stop.signal }));
  socket.message(1);
  await settled();
  stop.abort();
  assert.equal(await over, "over");
  socket.message(2);
  assert.deepEqual([heard, client.state.name], [[1], "open"]);
  const ended = new AbortController();
  const other = read(client.messages({ signal: ended.signal }));
  await settled();
  ended.abort();
  socket.end(4200);
  assert.equal(await other.over, "over", "what comes after the signal is not of this loop");
});

test("a stop by the server is thrown, after the messages before it", async () => {
  const { client, socket } = await open();
  const { heard, over } = read(client.messages());
  socket.message(1);
  socket.end(4200, "ended by the operator");
  await assert.rejects(over, { code: "stopped", detail: "4200 ended by the operator" });
  assert.deepEqual(heard, [1]);
});

test("a loop that is too slow throws when it has read what was kept for it", async () => {
  const { client, socket } = await open();
  const loop = client.messages();
  for (let seq = 1; seq <= 1000; seq++) socket.message(seq);
  const { heard, over } = read(loop);
  for (let seq = 1001; seq <= 1002; seq++) socket.message(seq);
  await assert.rejects(over, { code: "behind" });
  assert.ok(heard.length >= 1000, String(heard.length));
});

test("several loops and listeners each hear everything, and the slowest counts for the acks", async () => {
  const { client, socket, messages } = await open();
  const slow = client.messages();
  const { heard } = read(client.messages());
  for (const seq of [1, 2]) socket.message(seq);
  await slow.next();
  await pass(1000);
  assert.deepEqual([messages, heard, socket.of("ack")], [[1, 2], [1, 2], []]);
  await slow.next();
  await pass(1000);
  assert.deepEqual(socket.of("ack"), [{ type: "ack", seq: 1 }]);
});
