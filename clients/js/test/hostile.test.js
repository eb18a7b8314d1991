// Real sockets, and a server that keeps no rule of the protocol.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { after, test } from "node:test";

import { WebSocket, WebSocketServer } from "ws";

import { Signalpost } from "../dist/index.js";

const SOON_MS = 10_000;

/** Starts a server that handles its connections one after the other, each by the next function, and the last for ever. */
async function server(...scripts) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "signalpost.v1" });
  await once(server, "listening");
  let connections = 0;
  server.on("connection", (socket) => {
    socket.on("error", () => {});
    const frames = [];
    socket.on("message", (text) => frames.push(JSON.parse(text)));
    const say = (frame) => socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
    const hello = (epoch = "e", limits = {}) => say({ type: "hello", data: { session: "s", epoch, seq: 0, limits } });
    const resumed = (recovered, from) => say({ type: "resume", data: { recovered, from } });
    const message = (seq) => say({ seq, type: "message", data: seq });
    scripts[Math.min(connections++, scripts.length - 1)]({ socket, frames, say, hello, resumed, message });
  });
  after(() => {
    server.clients.forEach((socket) => socket.terminate());
    server.close();
  });
  return `ws://127.0.0.1:${server.address().port}/api/pool`;
}

function start(url) {
  const client = new Signalpost(url, { user: "1001", WebSocket });
  const events = [];
  client.on("message", ({ data }) => events.push(data) && undefined);
  client.on("gap", () => events.push("gap"));
  after(() => client.close());
  return { client, events };
}

async function until(what, holds) {
  const deadline = Date.now() + SOON_MS;
  while (!holds()) {
    assert.ok(Date.now() < deadline, `${what}: not within ${SOON_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("a server that repeats, reorders and drops is heard once, in order", async () => {
  const url = await server(
    ({ hello, resumed, message, socket }) => {
      hello();
      resumed(true, 0);
      for (const seq of [1, 1, 2, 1, 3]) message(seq);
      socket.close(4100);
    },
    ({ hello, resumed, message, socket }) => {
      hello();
      message(3);
      resumed(true, 3);
      for (const seq of [3, 2, 4, 4]) message(seq);
      socket.terminate();
    },
    ({ hello, resumed, message }) => {
      hello("another");
      resumed(false, 0);
      for (const seq of [1, 2]) message(seq);
    },
  );
  const { events } = start(url);
  await until("all is heard", () => events.length >= 7);
  assert.deepEqual(events, [1, 2, 3, 4, "gap", 1, 2]);
});

test("garbage, binary frames and half a frame end the connection, and the next one is good", async () => {
  const good = ({ hello, resumed, message }) => {
    hello();
    resumed(true, 0);
    message(1);
  };
  const bad = [
    ({ say }) => say("}{"),
    ({ socket }) => socket.send(Buffer.from([0, 1, 2])),
    ({ hello, socket }) => {
      hello();
      socket.send(Buffer.from('{"type":"message","seq":1,"data":"bytes"}'));
    },
    // A text frame of 100 bytes that ends after two.
    ({ socket }) => socket._socket.end(Buffer.from([0x81, 100, 0x7b, 0x22])),
    // A reserved bit.
    ({ socket }) => socket._socket.write(Buffer.from([0xf1, 0])),
    // Text that is not UTF-8.
    ({ socket }) => socket._socket.write(Buffer.from([0x81, 2, 0xc3, 0x28])),
  ];
  await Promise.all(
    bad.map(async (script, index) => {
      const { client, events } = start(await server(script, good));
      const isRefused = () => client.state.name === "stopped";
      await until(`script ${index}`, () => events.length || isRefused());
      // By the table, a client whose own library closes with 1002 or 1007 stops.
      if (isRefused()) assert.ok([1002, 1007].includes(client.state.code), JSON.stringify(client.state));
      else assert.deepEqual(events, [1], String(index));
    }),
  );
});

test("each close code does what the table says", async () => {
  const codes = { 1000: 0, 1001: 1, 1008: 0, 1011: 1, 1012: 1, 1013: 1, 4000: 1, 4001: 1, 4100: 1, 4101: 1, 4102: 1, 4200: 0, 4201: 0, 4202: 0, 4203: 0, 4204: 0, 4205: 0 };
  await Promise.all(
    Object.entries(codes).map(async ([code, returns]) => {
      let connections = 0;
      const script = ({ socket, hello }) => {
        connections++;
        hello();
        socket.close(Number(code), "why");
      };
      const { client } = start(await server(script, () => connections++));
      await until(code, () => (returns ? connections === 2 : client.state.name === "stopped"));
      if (!returns) assert.deepEqual([client.state.code, client.state.reason, connections], [Number(code), "why", 1]);
    }),
  );
});

test("a server that never answers a ping is left, and one that dribbles is not", async () => {
  const limits = { ping_interval_ms: 1000, pong_deadline_ms: 1000 };
  let silent = 0;
  const { client } = start(await server(({ hello }) => (silent++, hello("e", limits))));
  const dribbling = start(
    await server(({ hello, say, socket }) => {
      hello("e", limits);
      const timer = setInterval(() => say({ type: "news" }), 300);
      socket.on("close", () => clearInterval(timer));
    }),
  );
  await until("the silent one is left", () => silent === 2);
  assert.equal(dribbling.client.state.name, "open");
  client.close();
});

test("hosts that accept and hang up, answer no WebSocket, or are not there, are tried again with growing waits", async () => {
  const scripts = [
    (socket) => socket.resetAndDestroy(),
    (socket) => socket.end(),
    (socket) => socket.end("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n"),
    (socket) => socket.end("HTTP/1.1 401 Unauthorized\r\n\r\n"),
    (socket) => socket.end("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n"),
    (socket) => socket.end("nonsense\r\n\r\n"),
  ];
  await Promise.all(
    scripts.map(async (script) => {
      let connections = 0;
      const tcp = createServer((socket) => {
        connections++;
        socket.on("error", () => {});
        socket.once("data", () => script(socket));
      }).listen(0, "127.0.0.1");
      await once(tcp, "listening");
      const { client } = start(`ws://127.0.0.1:${tcp.address().port}`);
      const states = [];
      client.on("state", (state) => states.push(state));
      await until(String(script), () => connections === 3);
      client.close();
      tcp.close();
      assert.ok(states.every(({ name, code }) => name !== "waiting" || code === 1006));
    }),
  );
  const { client } = start("ws://127.0.0.1:1");
  await until("a closed port", () => client.state.afterMs > 0);
});
