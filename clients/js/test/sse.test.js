import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, describe, mock, test } from "node:test";

import { WebSocket } from "ws";

import { Signalpost } from "../dist/index.js";
import { parser } from "../dist/parser.js";
import { sse } from "../dist/sse.js";

const SOON_MS = 10_000;

async function until(what, holds) {
  const deadline = Date.now() + SOON_MS;
  while (!holds()) {
    assert.ok(Date.now() < deadline, `${what}: not within ${SOON_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

describe("the events' text", () => {
  const events = (...chunks) => {
    const found = [];
    const read = parser((type, data) => found.push([type, data]));
    chunks.forEach(read);
    return found;
  };

  test("events are read as the HTML standard says", () => {
    assert.deepEqual(events("data: a\n\n"), [["", "a"]]);
    assert.deepEqual(events("data:a\n\ndata:  b\n\ndata\n\n"), [["", "a"], ["", " b"], ["", ""]]);
    assert.deepEqual(events("event: close\ndata: a\ndata: b\n\ndata: c\n\n"), [["close", "a\nb"], ["", "c"]]);
    assert.deepEqual(events(": comment\n\nid: 1\nretry: 5\nother: x\n\nevent: x\n\n"), [], "without data there is no event");
    assert.deepEqual(events("data: a:b\u2028c\n\n"), [["", "a:b\u2028c"]]);
    assert.deepEqual(events("data: not yet over\n"), []);
  });

  test("lines end in three ways, wherever the text is cut", () => {
    for (const [end, name] of [["\n", "LF"], ["\r", "CR"], ["\r\n", "CRLF"]]) {
      const text = ["event: e", "data: 1", "data: 2", "", "data: 3", "", ": x"].join(end);
      for (let cut = 0; cut <= text.length; cut++) {
        assert.deepEqual(events(text.slice(0, cut), text.slice(cut)), [["e", "1\n2"], ["", "3"]], `${name}, cut at ${cut}`);
      }
      assert.deepEqual(events(...text), [["e", "1\n2"], ["", "3"]], name);
    }
  });
});

/** A server of streams, which the scripts write, one for each stream, the last for ever. It refuses WebSockets. */
async function server(...scripts) {
  const seen = { streams: [], posts: [], upgrades: 0 };
  const http = createServer(async (request, response) => {
    const url = new URL(request.url, "http://h");
    if (request.method === "POST") {
      let body = "";
      for await (const chunk of request) body += chunk;
      const frame = JSON.parse(body);
      seen.posts.push({ path: url.pathname, frame, authorization: request.headers.authorization });
      const status = (await seen.stream?.post?.(frame)) ?? 202;
      response.writeHead(status).end();
      return;
    }
    seen.streams.push({ path: url.pathname, query: Object.fromEntries(url.searchParams), headers: request.headers });
    const begin = () => response.writeHead(200, { "content-type": "text/event-stream" });
    const write = (text) => response.write(text);
    const say = (frame) => write(`data: ${JSON.stringify(frame)}\n\n`);
    seen.stream = { response, write, say, begin, end: () => response.end() };
    seen.stream.hello = (epoch = "e", limits = {}) => {
      begin();
      say({ type: "hello", data: { session: `s${seen.streams.length}`, epoch, seq: 0, limits } });
    };
    seen.stream.resumed = (recovered, from) => say({ type: "resume", data: { recovered, from } });
    seen.stream.message = (seq) => write(`id: e.${seq}\ndata: {"seq":${seq},"type":"message","data":${seq}}\n\n`);
    scripts[Math.min(seen.streams.length, scripts.length) - 1](seen.stream);
  });
  http.on("upgrade", (_, socket) => {
    seen.upgrades++;
    socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  after(() => {
    http.closeAllConnections();
    http.close();
  });
  return { url: `http://127.0.0.1:${http.address().port}/api/pool`, seen };
}

function start(url, options = {}) {
  const client = new Signalpost(url, { user: "Jürgen", WebSocket, fallback: sse, attributes: { locale: "de" }, ...options });
  const events = [];
  client.on("message", ({ data }) => events.push(data) && undefined);
  client.on("gap", () => events.push("gap"));
  after(() => client.close());
  return { client, events };
}

test("where no WebSocket gets through, the messages come by server-sent events, and go on after an end", async () => {
  const { url, seen } = await server(
    ({ hello, resumed, message, end }) => {
      hello();
      resumed(true, 0);
      for (const seq of [1, 2, 2]) message(seq);
      end();
    },
    ({ hello, resumed, message }) => {
      hello();
      resumed(true, 2);
      for (const seq of [2, 3]) message(seq);
    },
  );
  const { events, client } = start(url, { token: () => "t" });
  await until("all is heard", () => events.length === 3);
  assert.deepEqual(events, [1, 2, 3]);
  assert.deepEqual(seen.streams.map(({ path, query }) => [path, query]), [
    ["/api/pool/sse/J%C3%BCrgen", { locale: "de" }],
    ["/api/pool/sse/J%C3%BCrgen", { locale: "de", last_event_id: "e.2" }],
  ]);
  assert.deepEqual(seen.streams.map(({ headers }) => [headers.authorization, headers.accept]), Array(2).fill(["Bearer t", "text/event-stream"]));
  assert.equal(seen.upgrades, 1, "what works is not left while it is open");
  client.close();
  await until("the ack", () => seen.posts.some(({ frame }) => frame.type === "ack" && frame.seq === 3));
});

test("frames go up by POST to the session, in order, with the token", async () => {
  const { url, seen } = await server((stream) => {
    stream.hello();
    stream.resumed(true, 0);
    stream.post = (frame) => {
      if (frame.type === "ping") stream.say({ type: "pong" });
      if (frame.type === "message") stream.say({ type: "taken", id: frame.id });
    };
  });
  const { client } = start(url, { token: () => "t" });
  await Promise.all([1, 2, 3].map((data) => client.send(data)));
  assert.deepEqual(seen.posts.map(({ frame }) => frame.data ?? frame.type), ["ping", 1, 2, 3]);
  assert.ok(seen.posts.every(({ path, authorization }) => path === "/api/pool/sse/J%C3%BCrgen/s1" && authorization === "Bearer t"));
});

test("a session that a POST doesn't find is over, and what was sent may be lost", async () => {
  const { url, seen } = await server((stream) => {
    stream.hello();
    stream.say({ type: "pong" });
    stream.post = ({ type }) => (type === "message" ? 404 : 202);
  });
  const { client } = start(url);
  await assert.rejects(client.send(1), { code: "lost" });
  await until("another attempt", () => seen.upgrades + seen.streams.length > 2);
});

test("a POST without an answer ends the session", async () => {
  const { url } = await server((stream) => {
    stream.hello();
    stream.say({ type: "pong" });
    stream.post = ({ type }) => (type === "message" ? new Promise(() => {}) : 202);
  });
  const deadlines = [];
  const timeout = mock.method(AbortSignal, "timeout", (ms) => {
    deadlines.push(ms);
    const soon = new AbortController();
    setTimeout(() => soon.abort(new Error("timed out")), 300);
    return soon.signal;
  }).mock;
  const { client } = start(url);
  const sent = client.send(1);
  await assert.rejects(sent, { code: "lost" });
  timeout.restore();
  assert.deepEqual(new Set(deadlines), new Set([10_000]));
});

test("the server's close event has a code and a time", async () => {
  for (const [code, state] of [[4200, "stopped"], [4100, "waiting"]]) {
    const { url } = await server(({ hello, write, end }) => {
      hello();
      write(`event: close\ndata: {"code":${code},"reason":"why","after_ms":3210}\n\n`);
      end();
    });
    const { client } = start(url);
    await until(String(code), () => client.state.code === code);
    assert.deepEqual([client.state.name, client.state.reason], [state, "why"]);
    if (state === "waiting") assert.equal(client.state.afterMs, 3210);
    client.close();
  }
});

test("a refused token is another one's turn, and any other refusal waits", async () => {
  let status = 401;
  const { url, seen } = await server(({ response, hello }) => (seen.streams.length < 3 ? response.writeHead(status).end() : hello()));
  const reasons = [];
  const { client } = start(url, { token: ({ reason }) => `t${reasons.push(reason)}` });
  await until("the refused token", () => seen.streams.length === 1 && reasons.length === 2);
  status = 503;
  await until("the stream", () => client.state.name === "open");
  assert.deepEqual([reasons, seen.streams.map(({ headers }) => headers.authorization)], [["connect", "refused"], ["Bearer t1", "Bearer t2", "Bearer t2"]]);
});

test("comments are a sign of life; a stream without them is left", async () => {
  const limits = { ping_interval_ms: 1000, pong_deadline_ms: 1000 };
  const silent = await server(({ hello }) => hello("e", limits));
  const beating = await server(({ hello, write, response }) => {
    hello("e", limits);
    const timer = setInterval(() => write(":\n\n"), 300);
    response.on("close", () => clearInterval(timer));
  });
  const { client } = start(beating.url);
  start(silent.url);
  await until("the silent one is left", () => silent.seen.upgrades + silent.seen.streams.length > 2);
  assert.deepEqual([client.state.name, beating.seen.streams.length], ["open", 1]);
  client.close();
  await until("the stream is ended", () => beating.seen.stream.response.closed);
});

test("garbage ends the stream, and the next one goes on", async () => {
  for (const garbage of ["data: }{\n\n", 'data: {"type":7}\n\n', "data: null\n\n", "event: close\ndata: \n\n", "event: close\ndata: null\n\n"]) {
    const { url, seen } = await server(
      ({ hello, resumed, message, write }) => {
        hello();
        resumed(true, 0);
        message(1);
        write(garbage);
        message(2);
      },
      ({ hello, resumed, message }) => {
        hello();
        resumed(true, 1);
        message(2);
      },
    );
    const { client, events } = start(url);
    await until(garbage, () => events.length === 2);
    assert.deepEqual([events, seen.streams[1].query.last_event_id], [[1, 2], "e.1"], garbage);
    client.close();
  }
});
