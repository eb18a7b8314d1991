import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, mock, test } from "node:test";

import { Signalpost } from "../dist/index.js";
import { FakeSocket, after, before, chance, open, pass, settled, start, unhandled } from "./fake.js";

beforeEach(before);
afterEach(after);

describe("addresses", () => {
  const url = (base, options) => {
    new Signalpost(base, { user: "1001", WebSocket: FakeSocket, ...options });
    return settled().then(() => FakeSocket.last.url);
  };

  test("a socket is opened below the base address, with the subprotocol", async () => {
    assert.equal(await url("wss://example.com/api/pool"), "wss://example.com/api/pool/ws/1001");
    assert.deepEqual(FakeSocket.last.protocols, ["signalpost.v1"]);
    assert.equal(await url("https://example.com/api/pool/"), "wss://example.com/api/pool/ws/1001");
    assert.equal(await url("http://127.0.0.1:8080/api/pool"), "ws://127.0.0.1:8080/api/pool/ws/1001");
    assert.equal(await url(new URL("ws://h/")), "ws://h/ws/1001");
    assert.equal(await url("ws://http.example/http"), "ws://http.example/http/ws/1001");
  });

  test("a user and attributes are encoded", async () => {
    const attributes = { locale: "de", format: "a&b=c" };
    assert.equal(await url("ws://h/api", { user: "Jürgen M/?#%", attributes }), "ws://h/api/ws/J%C3%BCrgen%20M%2F%3F%23%25?locale=de&format=a%26b%3Dc");
  });

  test("an address that is not one, or no class of sockets, is refused at once", () => {
    assert.throws(() => new Signalpost("example", { user: "1001", WebSocket: FakeSocket }), TypeError);
    assert.throws(() => new Signalpost("ws://h/", { user: "1001", WebSocket: null }), /options\.WebSocket/);
  });

  test("a socket that can't be made stops the client", async () => {
    const forbidden = class {
      constructor() {
        throw new Error("not from https");
      }
    };
    const { client } = await start({ WebSocket: forbidden });
    assert.deepEqual(client.state, { name: "stopped", code: 1006, reason: "Error: not from https" });
  });
});

describe("messages", () => {
  test("each is heard once, in order, whatever is repeated; gaps between seqs are normal", async () => {
    const { messages, socket, gaps } = await open();
    for (const seq of [1, 2, 2, 1, 5, 4, 5, 3, 9]) socket.message(seq);
    assert.deepEqual(messages, [1, 2, 5, 9]);
    assert.deepEqual(gaps, []);
  });

  test("a message has its data, its seq and its text; bytes are bytes", async () => {
    const { client, socket } = await open();
    const heard = [];
    client.on("message", ({ data, seq, raw }) => heard.push([data, seq, raw]) && undefined);
    const big = '{"seq":1,"type":"message","data":12345678901234567890}';
    const bytes = '{"seq":2,"type":"message","data_base64":"AP8="}';
    const nothing = '{"seq":3,"type":"message","data":null}';
    for (const text of [big, bytes, nothing]) socket.say(text);
    assert.deepEqual(heard, [[12345678901234567890, 1, big], [Uint8Array.of(0, 255), 2, bytes], [null, 3, nothing]]);
  });

  test("a lost connection is resumed after the last message", async () => {
    const { messages, gaps, socket } = await open();
    assert.deepEqual(socket.of("resume"), [{ type: "resume" }], "the first session begins at once");
    socket.message(7);
    socket.end(1006);
    await pass(250);
    const next = FakeSocket.last;
    assert.notEqual(next, socket);
    next.hello();
    assert.deepEqual(next.of("resume"), [{ type: "resume", epoch: "e1", seq: 7 }]);
    next.resumed(true, 7);
    next.message(8);
    assert.deepEqual([messages, gaps], [[7, 8], []]);
  });

  test("where the first session begins is known before it has read anything", async () => {
    const { socket } = await open();
    socket.resumed(true, 41);
    socket.end(1006);
    await pass(250);
    FakeSocket.last.hello();
    assert.deepEqual(FakeSocket.last.of("resume"), [{ type: "resume", epoch: "e1", seq: 41 }]);
  });

  test("what can't be recovered is one gap, before what follows it", async () => {
    const { events, gaps, socket } = await open();
    socket.message(7);
    socket.end(1006);
    await pass(250);
    FakeSocket.last.hello({ epoch: "e2" });
    FakeSocket.last.resumed(false, 0);
    FakeSocket.last.message(1, "new");
    FakeSocket.last.end(1006);
    await pass(500);
    FakeSocket.last.hello({ epoch: "e2" });
    assert.deepEqual(FakeSocket.last.of("resume"), [{ type: "resume", epoch: "e2", seq: 1 }]);
    FakeSocket.last.resumed(true, 1);
    FakeSocket.last.message(2, "newer");
    assert.deepEqual(events, [7, "gap", "new", "newer"]);
    assert.deepEqual(gaps, [{ epoch: "e2", from: 0 }]);
  });

  test("an answer that was lost is asked for again, from the same place", async () => {
    const { gaps, socket } = await open();
    socket.message(7);
    socket.end(1006);
    await pass(250);
    FakeSocket.last.hello({ epoch: "e2" });
    FakeSocket.last.end(1006);
    await pass(500);
    FakeSocket.last.hello({ epoch: "e2" });
    assert.deepEqual(FakeSocket.last.of("resume"), [{ type: "resume", epoch: "e1", seq: 7 }]);
    FakeSocket.last.resumed(false, 0);
    assert.equal(gaps.length, 1);
  });

  test("messages that come before a late answer are neither lost nor doubled", async () => {
    for (const epoch of ["e1", "e2"]) {
      const { messages, socket } = await open();
      socket.message(7);
      socket.end(1006);
      await pass(250);
      const late = FakeSocket.last;
      late.hello({ epoch });
      late.message(10);
      late.message(10);
      late.message(7);
      late.resumed(epoch === "e1", epoch === "e1" ? 7 : 0);
      // Something before 10 was not sent, so all of it is sent again.
      for (const seq of [8, 9, 10, 11]) late.message(seq);
      assert.deepEqual(messages, epoch === "e1" ? [7, 10, 8, 9, 11] : [7, 10, 7, 8, 9, 11]);
      late.end(1006);
      await pass(500);
      FakeSocket.last.hello({ epoch });
      assert.deepEqual(FakeSocket.last.of("resume"), [{ type: "resume", epoch, seq: 11 }]);
    }
  });

  test("messages that came before an answer which never came are not doubled by the next connection", async () => {
    const { messages, socket } = await open();
    socket.message(7);
    socket.end(1006);
    await pass(250);
    FakeSocket.last.hello();
    FakeSocket.last.message(10);
    FakeSocket.last.end(1006);
    await pass(500);
    FakeSocket.last.hello();
    assert.deepEqual(FakeSocket.last.of("resume"), [{ type: "resume", epoch: "e1", seq: 7 }]);
    FakeSocket.last.resumed(true, 7);
    for (const seq of [8, 10, 11]) FakeSocket.last.message(seq);
    assert.deepEqual(messages, [7, 10, 8, 11]);
  });

  test("what came early in another epoch is no reason to drop a message of this one", async () => {
    const { messages, socket } = await open();
    socket.end(1006);
    await pass(250);
    FakeSocket.last.hello();
    FakeSocket.last.message(10, "old");
    FakeSocket.last.end(1006);
    await pass(500);
    FakeSocket.last.hello({ epoch: "e2" });
    FakeSocket.last.resumed(false, 0);
    FakeSocket.last.message(10, "new");
    assert.deepEqual(messages, ["old", "new"]);
  });

  test("a server that answers no resume is left after 1,000 messages", async () => {
    const { client, messages } = await start();
    FakeSocket.last.hello();
    for (let seq = 1; seq <= 1001; seq++) FakeSocket.last.message(seq);
    assert.deepEqual([client.state.name, messages.length], ["open", 1001]);
    FakeSocket.last.message(1002);
    assert.equal(client.state.name, "waiting");
  });

  test("an answer that doesn't say that all is there is a gap", async () => {
    for (const recovered of [undefined, null, false, "true", 1]) {
      const { client, gaps } = await start();
      FakeSocket.last.hello();
      FakeSocket.last.resumed(recovered, 0);
      assert.equal(gaps.length, 1, String(recovered));
      client.close();
    }
  });

  test("what is not signalpost.v1 ends the connection, and the next one resumes", async () => {
    const wrong = ["", "hello", "7", "null", "[]", "{}", '{"type":7}', '{"type":"message"}', '{"type":"message","seq":-1}', '{"type":"message","seq":1.5}'];
    wrong.push('{"type":"message","seq":"8","data":1}', '{"type":"message","seq":9007199254740993,"data":1}', '{"type":"resume","data":{"recovered":true}}');
    wrong.push('{"type":"hello","data":{"epoch":"e1"}}', '{"type":"resume","data":null}');
    for (const text of wrong) {
      const { client, messages, socket, gaps } = await open();
      socket.message(7);
      socket.say(text);
      assert.equal(client.state.name, "waiting", text);
      assert.equal(socket.closed, 1000, text);
      socket.message(8, "of a connection that is given up");
      await pass(250);
      FakeSocket.last.hello();
      assert.deepEqual(FakeSocket.last.of("resume"), [{ type: "resume", epoch: "e1", seq: 7 }], text);
      assert.deepEqual([messages, gaps], [[7], []], text);
      client.close();
    }
  });

  test("what comes before the hello, or a hello without an epoch, ends the connection", async () => {
    for (const text of ['{"type":"message","seq":1,"data":1}', '{"type":"hello"}', '{"type":"hello","data":{"epoch":7}}', '{"type":"resume","data":{"recovered":true,"from":0}}']) {
      const { client, messages } = await start();
      FakeSocket.last.onopen();
      FakeSocket.last.say(text);
      assert.deepEqual([client.state.name, messages], ["waiting", []], text);
      client.close();
    }
  });

  test("an unknown type is of a newer server, and changes nothing", async () => {
    const { client, socket, messages } = await open();
    socket.say({ type: "news", data: 1 });
    socket.message(1);
    assert.deepEqual([client.state.name, messages], ["open", [1]]);
  });

  test("a listener that throws is reported, and the others hear the message", async () => {
    const { client, socket, messages } = await open();
    const reported = unhandled();
    client.on("message", () => {
      throw new Error("mine");
    });
    const later = [];
    client.on("message", ({ data }) => later.push(data));
    socket.message(1);
    assert.equal((await reported).message, "mine");
    await pass(1000);
    assert.deepEqual([messages, later, socket.of("ack")], [[1], [1], [{ type: "ack", seq: 1 }]]);
  });

  test("a listener that was taken away hears nothing more", async () => {
    const { client, socket } = await open();
    const heard = [];
    const off = client.on("message", ({ data }) => heard.push(data) && undefined);
    socket.message(1);
    off();
    socket.message(2);
    assert.deepEqual(heard, [1]);
  });
});

describe("acks", () => {
  test("they are gathered for a second, or 64 messages", async () => {
    const { socket } = await open();
    for (let seq = 1; seq <= 63; seq++) socket.message(seq);
    await pass(999);
    assert.deepEqual(socket.of("ack"), []);
    await pass(1);
    assert.deepEqual(socket.of("ack"), [{ type: "ack", seq: 63 }]);
    for (let seq = 64; seq <= 127; seq++) socket.message(seq);
    await settled();
    assert.deepEqual(socket.of("ack").at(-1), { type: "ack", seq: 127 });
    await pass(5000);
    assert.equal(socket.of("ack").length, 2);
    socket.message(128);
    await pass(500);
    for (let seq = 129; seq <= 191; seq++) socket.message(seq);
    await settled();
    assert.equal(socket.of("ack").at(-1).seq, 191);
    socket.message(192);
    await pass(999);
    assert.equal(socket.of("ack").length, 3, "the second begins with the message");
    await pass(1);
    assert.equal(socket.of("ack").at(-1).seq, 192);
  });

  test("nothing is acked before all listeners are done with it, and with what came before it", async () => {
    const { client, socket } = await open();
    const done = [];
    client.on("message", () => new Promise((resolve) => done.push(resolve)));
    for (const seq of [3, 5, 8]) socket.message(seq);
    done[1]();
    await pass(1000);

    assert.ok(socket.of("ack").every(({ seq }) => seq < 3));
    done[0]();
    await pass(1000);
    assert.equal(socket.of("ack").at(-1).seq, 5, "8 is not done");
    done[2]();
    await pass(1000);
    assert.equal(socket.of("ack").at(-1).seq, 8);
  });

  test("a listener that fails is done as well", async () => {
    const { client, socket } = await open();
    const reported = unhandled();
    client.on("message", () => Promise.reject(new Error("mine")));
    socket.message(1);
    await reported;
    await pass(1000);
    assert.deepEqual(socket.of("ack"), [{ type: "ack", seq: 1 }]);
  });

  test("by hand, only ack() counts, for all before it", async () => {
    const { client, socket } = await open({ ack: "manual" });
    const heard = [];
    client.on("message", (message) => heard.push(message) && undefined);
    for (const seq of [1, 2, 3]) socket.message(seq);
    await pass(5000);
    assert.deepEqual(socket.of("ack"), []);
    heard[1].ack();
    heard[0].ack();
    await pass(1000);
    assert.deepEqual(socket.of("ack"), [{ type: "ack", seq: 2 }]);
  });

  test("with none, nothing is acked", async () => {
    const { client, socket } = await open({ ack: "none" });
    client.on("message", ({ ack }) => ack());
    for (let seq = 1; seq < 200; seq++) socket.message(seq);
    await pass(5000);
    assert.deepEqual(socket.of("ack"), []);
  });

  test("what was acked, or was to be, is acked over the next connection, as the last one may have lost it", async () => {
    for (const wasSent of [true, false]) {
      const { client, socket } = await open({ ack: "manual" });
      client.on("message", ({ ack }) => void ack());
      socket.message(7);
      if (wasSent) await pass(1000);
      assert.equal(socket.of("ack").length, Number(wasSent));
      socket.end(1006);
      await pass(5000);
      FakeSocket.last.hello();
      assert.deepEqual(FakeSocket.last.of("ack"), [], "not before the answer to the resume");
      FakeSocket.last.resumed(true, 7);
      assert.deepEqual(FakeSocket.last.of("ack"), [{ type: "ack", seq: 7 }]);
      client.close();
    }
  });

  test("what is done of an older epoch acks nothing in the next one, and holds nothing up", async () => {
    for (const ack of ["auto", "manual"]) {
      const { client, socket } = await open({ ack });
      const heard = [];
      client.on("message", (message) => new Promise((done) => heard.push(() => (message.ack(), done()))));
      socket.message(7);
      socket.message(8);
      socket.end(1006);
      await pass(250);
      const next = FakeSocket.last;
      next.hello({ epoch: "e2" });
      next.resumed(false, 0);
      next.message(7);
      heard[0]();
      await pass(1000);
      assert.deepEqual(next.of("ack"), [], ack);
      heard[2]();
      await pass(1000);
      assert.deepEqual(next.of("ack"), [{ type: "ack", seq: 7 }], ack);
      // 8 of the older epoch is never done.
      next.message(9);
      heard[3]();
      await pass(1000);
      assert.deepEqual(next.of("ack").at(-1), { type: "ack", seq: 9 }, ack);
      client.close();
    }
  });

  test("a message that came early is not acked before what came before it is certain", async () => {
    const { socket } = await open();
    socket.message(7);
    socket.end(1006);
    await pass(250);
    const next = FakeSocket.last;
    next.hello();
    next.message(10);
    next.resumed(true, 7);
    await pass(1000);
    assert.deepEqual(next.of("ack").at(-1), { type: "ack", seq: 7 });
    for (const seq of [8, 10]) next.message(seq);
    await pass(1000);
    assert.deepEqual(next.of("ack").at(-1), { type: "ack", seq: 10 });
  });

  test("close() acks what the listeners are done with, also from within a listener", async () => {
    const { client, socket } = await open();
    client.on("message", () => client.close());
    socket.message(7);
    socket.message(8);
    assert.equal(client.state.name, "stopped");
    await pass(0);
    assert.deepEqual([socket.of("ack"), socket.closed], [[{ type: "ack", seq: 7 }], 1000]);
    assert.equal(socket.sent.at(-1).type, "ack");
  });
});

describe("reconnecting", () => {
  test("the close code says whether and when", async () => {
    const waits = { 1001: 100, 1012: 100, 4000: 100, 4001: 100, 4099: 100, 1005: 250, 1006: 250, 1011: 250, 1013: 250, 4100: 250, 4101: 250, 4102: 250 };
    for (const code of [...Object.keys(waits).map(Number), 1000, 1002, 1007, 1009, 4200, 4201, 4202, 4203, 4204, 4205]) {
      const { client, socket } = await open();
      socket.end(code, "why");
      const afterMs = waits[code];
      assert.deepEqual(client.state, afterMs ? { name: "waiting", afterMs, code, reason: "why" } : { name: "stopped", code, reason: "why" });
      await pass((afterMs ?? 60_001) - 1);
      assert.equal(FakeSocket.last, socket, String(code));
      await pass(1);
      assert.equal(FakeSocket.last === socket, !afterMs, String(code));
      client.close();
    }
  });

  test("waits double with each failure up to 10 s, and begin anew after 5 s of a good connection", async () => {
    const { client, states } = await start();
    const waits = () => states.filter(({ name }) => name === "waiting").map(({ afterMs }) => afterMs);
    for (let failures = 0; failures < 8; failures++) {
      FakeSocket.last.end(1006);
      await pass(10_000);
    }
    assert.deepEqual(waits(), [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    FakeSocket.last.hello();
    await pass(4999);
    FakeSocket.last.end(1006);
    assert.equal(client.state.afterMs, 10_000, "not good yet");
    await pass(10_000);
    FakeSocket.last.hello();
    await pass(5000);
    FakeSocket.last.end(1006);
    assert.equal(client.state.afterMs, 250);
  });

  test("a wait is random over its whole range, but chance makes no hot loop", async () => {
    const { client } = await start();
    chance.mockImplementation(() => 0.25);
    FakeSocket.last.end(1006);
    assert.equal(client.state.afterMs, 100);
    chance.mockImplementation(() => 0);
    for (let failures = 1; failures < 5; failures++) {
      await pass(10_000);
      FakeSocket.last.end(1012);
      assert.equal(client.state.afterMs, 50);
    }
  });

  test("\"now\" is at once only once", async () => {
    const { client } = await start();
    const waits = [];
    for (let failures = 0; failures < 3; failures++) {
      FakeSocket.last.end(1012);
      waits.push(client.state.afterMs);
      await pass(10_000);
    }
    assert.deepEqual(waits, [100, 500, 1000]);
  });

  test("the server's after_ms wins, but not against a client that failed before", async () => {
    const { client, socket } = await open();
    socket.say({ type: "reconnect", data: { after_ms: 1234 } });
    socket.end(1012);
    assert.equal(client.state.afterMs, 1234);
    await pass(1234);
    FakeSocket.last.hello();
    FakeSocket.last.say({ type: "reconnect", data: { after_ms: 0 } });
    FakeSocket.last.end(1012);
    assert.equal(client.state.afterMs, 500);
    await pass(500);
    FakeSocket.last.end(1012);
    assert.equal(client.state.afterMs, 1000, "it was for the last connection");
  });

  test("an after_ms is for one wait only", async () => {
    const { client, socket } = await open();
    socket.say({ type: "reconnect", data: { after_ms: 5000 } });
    socket.end(1012);
    assert.equal(client.state.afterMs, 5000);
    await pass(5000);
    FakeSocket.last.end(1006);
    assert.equal(client.state.afterMs, 500);
  });

  test("an after_ms that is no time is ignored, and one beyond all timers doesn't fire at once", async () => {
    for (const [after_ms, expected] of [["x", 100], [-5, 100], [null, 100], [{}, 100], [1e300, 1e300]]) {
      const { client, socket } = await open();
      socket.say({ type: "reconnect", data: { after_ms } });
      socket.end(1012);
      assert.equal(client.state.afterMs, expected, String(after_ms));
      const sockets = FakeSocket.all.length;
      await pass(99);
      assert.equal(FakeSocket.all.length, sockets);
      client.close();
    }
  });

  test("a connection without a hello is given up after 10 s", async () => {
    const { client } = await start();
    FakeSocket.last.onopen();
    await pass(9999);
    assert.equal(client.state.name, "connecting");
    await pass(1);
    assert.deepEqual(client.state, { name: "waiting", afterMs: 250, code: 1006, reason: "no hello in time" });
    assert.equal(FakeSocket.last.closed, 1000);
  });

  test("what an older connection says or does changes nothing", async () => {
    const { client, messages, socket } = await open();
    const { onmessage, onclose } = socket;
    socket.end(1006);
    await pass(250);
    onmessage({ data: '{"seq":1,"type":"message","data":"old"}' });
    onclose({ code: 4200, reason: "old" });
    assert.deepEqual([client.state.name, messages], ["connecting", []]);
  });

  test("close() ends it all, and connect() goes on from where it was", async () => {
    const { client, socket, states } = await open();
    socket.message(7);
    await settled();
    client.close();
    client.close();
    await pass(60_000);
    assert.equal(FakeSocket.last, socket);
    assert.deepEqual(states.at(-1), { name: "stopped", code: 1000, reason: "closed by the client" });
    client.connect();
    client.connect();
    await settled();
    assert.equal(FakeSocket.all.length, 2);
    FakeSocket.last.hello();
    assert.deepEqual(FakeSocket.last.of("resume"), [{ type: "resume", epoch: "e1", seq: 7 }]);
  });

  test("a client that is closed in any state stays closed", async () => {
    for (const reach of [() => {}, (socket) => socket.onopen(), (socket) => socket.hello(), (socket) => socket.end(1006), (socket) => socket.end(4200)]) {
      const { client } = await start();
      reach(FakeSocket.last);
      client.close();
      const sockets = FakeSocket.all.length;
      await pass(120_000);
      assert.deepEqual([client.state.name, FakeSocket.all.length], ["stopped", sockets]);
    }
  });

  test("a listener of the state may close at any time", async () => {
    for (const when of ["connecting", "open", "waiting"]) {
      FakeSocket.all = [];
      const client = new Signalpost("ws://h/", { user: "1", WebSocket: FakeSocket });
      client.on("state", ({ name }) => name === when && client.close());
      await settled();
      FakeSocket.last.hello();
      FakeSocket.last.end(1006);
      await pass(60_000);
      assert.deepEqual([client.state.name, FakeSocket.all.length], ["stopped", 1], when);
    }
  });
});

describe("liveness", () => {
  const silence = async () => {
    const opened = await open();
    opened.socket.sent.length = 0;
    return opened;
  };

  test("a silent server is pinged, and given up if it doesn't answer", async () => {
    const { client, socket } = await silence();
    await pass(24_999);
    assert.deepEqual(socket.sent, []);
    await pass(1);
    assert.deepEqual(socket.sent, [{ type: "ping" }]);
    await pass(9999);
    assert.equal(client.state.name, "open");
    await pass(1);
    assert.deepEqual(client.state, { name: "waiting", afterMs: 250, code: 1006, reason: "no answer to a ping" });
    assert.equal(socket.closed, 1000);
  });

  test("any frame is a sign of life: a pong, or the error of a server that knows no pings", async () => {
    for (const answer of [{ type: "pong" }, { type: "error", data: { code: "invalid_frame", detail: "unknown" } }, { seq: 1, type: "message", data: 1 }]) {
      const { client, socket } = await silence();
      for (let round = 1; round <= 3; round++) {
        await pass(25_000);
        assert.equal(socket.of("ping").length, round);
        socket.say(answer);
        await pass(24_999);
        assert.equal(socket.of("ping").length, round);
        socket.say({ type: "pong" });
      }
      assert.equal(client.state.name, "open");
      client.close();
    }
  });

  test("limits that are none make no storm of pings", async () => {
    for (const limits of [undefined, {}, { ping_interval_ms: 0, pong_deadline_ms: -1 }, { ping_interval_ms: 1, pong_deadline_ms: 1 }]) {
      const { client } = await start();
      FakeSocket.last.hello({ limits });
      const socket = FakeSocket.last;
      for (let ms = 0; ms < 10_000; ms += 100) {
        await pass(100);
        socket.say({ type: "pong" });
      }
      assert.ok(socket.of("ping").length <= 11, JSON.stringify(limits));
      client.close();
    }
  });
});

describe("waking", () => {
  beforeEach(() => {
    const page = new EventTarget();
    Object.assign(globalThis, {
      addEventListener: page.addEventListener.bind(page),
      removeEventListener: page.removeEventListener.bind(page),
      dispatchEvent: page.dispatchEvent.bind(page),
      document: { hidden: false },
    });
  });
  afterEach(() => {
    for (const name of ["addEventListener", "removeEventListener", "dispatchEvent", "document"]) delete globalThis[name];
  });

  for (const name of ["online", "pageshow", "visibilitychange"]) {
    test(`${name} asks an open connection for a sign of life, soon`, async () => {
      const { client, socket } = await open();
      dispatchEvent(new Event(name));
      dispatchEvent(new Event(name));
      assert.equal(socket.of("ping").length, 2, "one with the hello, one now");
      await pass(4999);
      dispatchEvent(new Event(name));
      await pass(1);
      assert.equal(client.state.reason, "no answer to a ping");
    });

    test(`${name} cuts a wait short, to a random time of up to a second`, async () => {
      const { client } = await start();
      for (let failures = 0; failures < 6; failures++) {
        FakeSocket.last.end(1006);
        await pass(10_000);
      }
      FakeSocket.last.end(1006);
      assert.equal(client.state.afterMs, 10_000);
      dispatchEvent(new Event(name));
      assert.deepEqual(client.state, { name: "waiting", afterMs: 1000, code: 1006, reason: "" });
      chance.mockImplementation(() => 0.5);
      await pass(100);
      dispatchEvent(new Event(name));
      assert.equal(client.state.afterMs, 500);
      await pass(400);
      dispatchEvent(new Event(name));
      assert.equal(client.state.afterMs, 500, "it isn't put off");
      const sockets = FakeSocket.all.length;
      await pass(100);
      assert.equal(FakeSocket.all.length, sockets + 1);
    });
  }

  test("a page that is hidden, or a client that has stopped, does nothing", async () => {
    const { client, socket } = await open();
    document.hidden = true;
    dispatchEvent(new Event("visibilitychange"));
    assert.equal(socket.of("ping").length, 1);
    document.hidden = false;
    const removed = mock.fn(globalThis.removeEventListener);
    globalThis.removeEventListener = removed;
    client.close();
    assert.deepEqual(removed.mock.calls.map(({ arguments: [name] }) => name), ["online", "pageshow", "visibilitychange"]);
    dispatchEvent(new Event("online"));
    await pass(10_000);
    assert.equal(FakeSocket.all.length, 1);
  });
});
