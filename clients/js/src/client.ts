import { acks } from "./acks.js";
import { GOOD_AFTER_MS, afterClose, pause } from "./backoff.js";
import { SignalpostError } from "./errors.js";
import { messages } from "./messages.js";
import { sends } from "./sends.js";
import { timer } from "./timer.js";
import { tokens } from "./tokens.js";
import type { Events, Link, Message, Opening, Options, Position, State } from "./types.js";
import { websocket } from "./websocket.js";

/** From the token's arrival to the hello. */
const CONNECT_DEADLINE_MS = 10_000;
/** A page that wakes shows its user soon whether it is connected. */
const WAKE_DEADLINE_MS = 5000;
/** The network returns for many at once. */
const WAKE_MAX_MS = 1000;
/** The shortest silence before a ping, and the shortest wait for its answer, whatever the server says. */
const OFTEN_MS = 1000;
/** Messages that come before the answer to a resume: as many as the server keeps for a user. */
const EARLY_MAX = 1000;
const WAKING = ["online", "pageshow", "visibilitychange"];
/** RFC 6455's code for a connection that ended without a close frame. */
const LOST = 1006;
const EXPIRED = 4001;
const UNAUTHORIZED = 4205;

interface Hello {
  session: string;
  epoch: string;
  limits?: { message_bytes_max?: number; ping_interval_ms?: number; pong_deadline_ms?: number };
  token_ends_in_ms?: number;
}

interface Envelope<In> {
  seq: number;
  data: In;
  data_base64?: string;
}

/** A user's messages, over as many connections as it takes. `In` and `Out`: what is read and sent, as JSON. */
export class Signalpost<In = unknown, Out = unknown> {
  readonly #options: Options;
  readonly #url: URL;
  readonly #listeners: Map<string, Set<(event: never) => unknown>> = new Map();
  #state: State = { name: "connecting" };

  #link: Link | undefined;
  /** Whether the server has said hello. */
  #isOpen = false;
  /** Each attempt to connect has its own. What an older one brings is thrown away. */
  #generation = 0;
  #isFallback = false;
  #failures = 0;
  #waitEnds = 0;
  #returnAfterMs: number | undefined;
  #pingMs = 0;
  #pongMs = 0;
  /** Pings that a server which doesn't know them may still answer with an error. */
  #strangePings = 0;

  /** Where this client is in its mailbox. */
  #position: Position | undefined;
  /** The epoch of the last hello. */
  #epoch = "";
  /** Whether the server has answered the resume. */
  #isResumed = false;
  /** Messages that came before that answer, since the server waited no longer. It may send them again. */
  readonly #early: Set<number> = new Set();

  readonly #connecting = timer();
  readonly #waiting = timer();
  readonly #silence = timer();
  readonly #pong = timer();
  readonly #good = timer();

  readonly #acks = acks(
    () => this.#position?.seq ?? 0,
    (frame) => this.#isResumed && this.#write(frame),
  );
  readonly #sends = sends((frame) => this.#write(frame));
  readonly #tokens;

  /** `url`: where the server is, with its base path, as in `wss://example.com/api/pool`. Connects at once. */
  constructor(url: string | URL, options: Options) {
    this.#options = { WebSocket: globalThis.WebSocket, ack: "auto", ...options };
    this.#url = new URL(String(url).replace(/^ws/, "http"), globalThis.location?.href);
    for (const pair of Object.entries(options.attributes ?? {})) this.#url.searchParams.set(...pair);
    if (!this.#options.WebSocket) throw new TypeError("there is no global WebSocket: pass a class as options.WebSocket");
    this.#tokens = options.token && tokens(options.token, (call) => this.#renew(call));
    this.#start();
  }

  get state(): State {
    return this.#state;
  }

  /** Calls `listener` for each event of this name. Returns a function that takes it away. */
  on<K extends keyof Events<In>>(name: K, listener: (event: Events<In>[K]) => unknown): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /**
   * Returns the messages from this call on. One is acked (`ack: "auto"`) when the next is asked for. The loop ends with `close()` or `signal`,
   * and throws if the server stopped the client or if the loop is too slow.
   */
  messages({ signal }: { signal?: AbortSignal } = {}): AsyncGenerator<Message<In>, void, undefined> {
    return messages<In>((name, listener) => this.on(name, listener), signal);
  }

  /**
   * Sends a message, or keeps it until there is a connection. Resolves when its events are committed, and rejects with the server's reason.
   * With a server that doesn't answer messages, it resolves when it is written.
   */
  send(data: Out): Promise<void> {
    const sent = this.#sends.add(data);
    if (this.#isStopped()) this.#sends.stop();
    return sent;
  }

  /** Connects again after a stop. */
  connect(): void {
    if (this.#isStopped()) this.#start();
  }

  /** Closes the connection, after acking what the listeners are done with. */
  close(): void {
    this.#stop(1000, "closed by the client");
  }

  // Connecting.

  #start(): void {
    for (const name of WAKING) globalThis.addEventListener?.(name, this.#wake);
    this.#failures = 0;
    this.#open();
  }

  async #open(): Promise<void> {
    const generation = ++this.#generation;
    const isCurrent = (): boolean => generation === this.#generation;
    this.#enter({ name: "connecting" });
    let token: string | undefined;
    try {
      if (isCurrent()) token = await this.#tokens?.get();
    } catch (error) {
      return void (isCurrent() && this.#lost(LOST, `no token: ${error}`));
    }
    if (!isCurrent()) return;
    if (this.#tokens && !token) return this.#stop(UNAUTHORIZED, "there is no token, or none but the one that was refused");
    this.#connecting.set(CONNECT_DEADLINE_MS, () => this.#lost(LOST, "no hello in time"));
    const opening: Opening = {
      url: this.#url,
      user: this.#options.user,
      token,
      position: this.#position,
      onframe: (text) => isCurrent() && this.#frame(text),
      onalive: () => isCurrent() && this.#alive(),
      onend: (code, reason, afterMs) => isCurrent() && this.#lost(code, reason, afterMs),
    };
    const { fallback, WebSocket } = this.#options;
    try {
      this.#link = fallback && this.#isFallback ? fallback(opening) : websocket(WebSocket!, opening);
    } catch (error) {
      // The same call would fail again: a page of https that may not open a socket of ws, for example.
      this.#stop(LOST, String(error));
    }
  }

  #lost(code: number, reason: string, afterMs = this.#returnAfterMs): void {
    // What can't be reached this way may be reached another way.
    if (!this.#isOpen) this.#isFallback = !this.#isFallback;
    this.#detach()?.close();
    const then = afterClose(code);
    if (code === EXPIRED) this.#tokens?.forget("expiring");
    // Once, so that no failures have to be counted.
    const isOther = code === UNAUTHORIZED && this.#tokens?.refuse();
    if (then === "stop" && !isOther) return this.#stop(code, reason);
    const own = isOther ? pause("now", 0, Math.random()) : pause(then, this.#failures, Math.random());
    // The server's wish wins, but not against a client that has failed before.
    this.#wait(typeof afterMs === "number" && afterMs >= 0 ? Math.max(afterMs, this.#failures && own) : own, code, reason);
  }

  #wait(afterMs: number, code: number, reason: string): void {
    this.#waitEnds = Date.now() + afterMs;
    this.#waiting.set(afterMs, () => {
      this.#failures++;
      this.#open();
    });
    this.#enter({ name: "waiting", afterMs, code, reason });
  }

  #stop(code: number, reason: string): void {
    if (this.#isStopped()) return;
    for (const name of WAKING) globalThis.removeEventListener?.(name, this.#wake);
    const isResumed = this.#isResumed;
    const link = this.#detach();
    // Listeners may still be at work, and return at once: their messages are acked too.
    setTimeout(() => {
      this.#acks.send((frame) => isResumed && this.#write(frame, link));
      link?.close();
    });
    this.#tokens?.stop();
    this.#enter({ name: "stopped", code, reason });
    this.#sends.stop();
  }

  /** Gives the connection up, whatever comes of it later. */
  #detach(): Link | undefined {
    const link = this.#link;
    this.#link = this.#returnAfterMs = undefined;
    this.#generation++;
    this.#strangePings = 0;
    this.#isOpen = this.#isResumed = false;
    for (const one of [this.#connecting, this.#waiting, this.#silence, this.#pong, this.#good]) one.clear();
    this.#acks.pause();
    this.#tokens?.pause();
    this.#sends.lost();
    return link;
  }

  readonly #wake = (): void => {
    if (globalThis.document?.hidden) return;
    const state = this.#state;
    const soon = Math.random() * WAKE_MAX_MS;
    if (state.name === "waiting" && soon < this.#waitEnds - Date.now()) this.#wait(soon, state.code, state.reason);
    if (this.#isOpen && !this.#pong.isSet()) this.#ping(Math.min(this.#pongMs, WAKE_DEADLINE_MS));
  };

  // Reading.

  #frame(text: unknown): unknown {
    if (this.#isOpen) this.#alive();
    let frame: any;
    try {
      // Binary frames are not of signalpost.v1, but some libraries' buffers can be parsed.
      frame = typeof text === "string" && JSON.parse(text);
    } catch {}
    const data = frame?.data ?? {};
    switch (frame?.type) {
      case "hello":
        return this.#hello(data);
      case "resume":
        return this.#resumed(data);
      case "message":
        return this.#message(frame, text as string);
      case "auth":
        return this.#tokens?.lives(data.token_ends_in_ms);
      case "reconnect":
        return (this.#returnAfterMs = data.after_ms);
      case "pong":
        this.#strangePings = 0;
        return this.#sends.answers(true);
      case "taken":
        return this.#sends.settle(frame.id);
      case "error":
        return this.#refused(frame.id, new SignalpostError(data.code, data.detail));
    }
    // Others are of a newer server.
    return typeof frame?.type === "string" || this.#broken();
  }

  /** Reads on from the last message that is certain, over another connection. */
  #broken(): void {
    this.#lost(LOST, "the server sent what is not signalpost.v1");
  }

  #hello({ session, epoch, limits = {}, token_ends_in_ms }: Hello): void {
    if (this.#isOpen || typeof epoch !== "string") return this.#broken();
    this.#connecting.clear();
    this.#isOpen = true;
    if (epoch !== this.#epoch) {
      this.#early.clear();
      this.#acks.clear();
    }
    this.#epoch = epoch;
    this.#pingMs = Math.max(OFTEN_MS, limits.ping_interval_ms || 25_000);
    this.#pongMs = Math.max(OFTEN_MS, limits.pong_deadline_ms || 10_000);
    this.#good.set(GOOD_AFTER_MS, () => (this.#failures = 0));
    this.#tokens?.lives(token_ends_in_ms);
    // Tells whether the server answers messages.
    this.#ping(this.#pongMs);
    this.#sends.open(limits.message_bytes_max || Infinity);
    this.#enter({ name: "open", session });
  }

  #resumed({ recovered, from }: { recovered: boolean; from: number }): void {
    if (!this.#isOpen || !isSeq(from)) return this.#broken();
    this.#isResumed = true;
    this.#position = { epoch: this.#epoch, seq: from };
    this.#acks.again();
    if (recovered !== true) this.#emit("gap", { epoch: this.#epoch, from });
  }

  #message(envelope: Envelope<In>, raw: string): void {
    const { seq, data_base64 } = envelope;
    const epoch = this.#epoch;
    const early = this.#early;
    const position = this.#position;
    if (!this.#isOpen || !isSeq(seq) || early.size > EARLY_MAX) return this.#broken();
    if (position?.epoch === epoch && seq <= position.seq) return;
    const isKnown = early.has(seq);
    if (this.#isResumed) {
      position!.seq = seq;
      for (const one of early) if (one <= seq) early.delete(one);
    } else {
      early.add(seq);
    }
    if (isKnown) return;

    const { ack } = this.#options;
    const data = data_base64 === undefined ? envelope.data : (Uint8Array.from(atob(data_base64), (char) => char.charCodeAt(0)) as In);
    const isNow = (): boolean => epoch === this.#epoch;
    if (ack === "auto") this.#acks.begin(seq);
    const calls = this.#emit("message", { data, seq, raw, ack: () => ack === "manual" && isNow() && this.#acks.upto(seq) });
    let left = calls.length;
    const done = (): void => {
      if (--left < 1 && ack === "auto" && isNow()) this.#acks.done(seq);
    };
    // What a listener throws is not caught: it is reported as any error that nobody handles.
    for (const call of calls) call.finally(done);
    if (!left) done();
  }

  #refused(id: string, error: SignalpostError): void {
    if (this.#sends.settle(id, error)) return;
    // A server that doesn't know pings answers them so, and doesn't answer messages.
    if (error.code !== "invalid_frame" || !this.#strangePings) return void this.#emit("error", error);
    this.#strangePings--;
    this.#sends.answers(false);
  }

  // Liveness: a browser hides the server's pings from the page.

  #alive(): void {
    this.#pong.clear();
    this.#silence.set(this.#pingMs, () => this.#ping(this.#pongMs));
  }

  #ping(deadlineMs: number): void {
    this.#strangePings++;
    this.#pong.set(deadlineMs, () => this.#lost(LOST, "no answer to a ping"));
    this.#write('{"type":"ping"}');
  }

  #write(frame: string, link: Link | undefined = this.#link): boolean {
    link?.send(frame);
    return !!link;
  }

  /** Brings another token to the connection that is open, and returns whether it still is. */
  async #renew(call: Promise<string | null | undefined>): Promise<boolean> {
    const generation = this.#generation;
    // A token that comes late is for another connection, which has waited for it itself.
    const isCurrent = (): boolean => generation === this.#generation;
    try {
      const token = await call;
      if (isCurrent() && token) this.#write(JSON.stringify({ type: "auth", token }));
      else if (isCurrent()) this.#stop(UNAUTHORIZED, "there is no token");
    } catch (error) {
      if (isCurrent()) this.#emit("error", new SignalpostError("token", String(error)));
    }
    return isCurrent();
  }

  #isStopped(): boolean {
    return this.#state.name === "stopped";
  }

  #enter(state: State): void {
    this.#state = state;
    this.#emit("state", state);
  }

  #emit<K extends keyof Events<In>>(name: K, event: Events<In>[K]): Promise<unknown>[] {
    return [...(this.#listeners.get(name) ?? [])].map((listener) => new Promise((resolve) => resolve(listener(event as never))));
  }
}

function isSeq(seq: unknown): seq is number {
  return Number.isSafeInteger(seq) && (seq as number) >= 0;
}
