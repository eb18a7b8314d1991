import { acks } from "./acks.js";
import { afterClose, pause } from "./backoff.js";
import { CONNECT_DEADLINE_MS, EARLY_MAX, GOOD_AFTER_MS, LOST, OFTEN_MS, UNAUTHORIZED, WAKE_DEADLINE_MS, WAKE_MAX_MS } from "./bounds.js";
import { SignalpostError } from "./errors.js";
import { messages } from "./messages.js";
import { sends } from "./sends.js";
import { timer } from "./timer.js";
import { type Token, type Tokens, tokens } from "./tokens.js";
import type { Events, Link, Opening, Options, Position, State } from "./types.js";
import { websocket } from "./websocket.js";

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

/** What there is of a client to write to. */
interface Client {
  state: State;
}

/** Gives a client its methods, and connects it, again after each end, until it is closed or told to stop. */
export function connect<In>(client: Client, base: string | URL, options: Options): void {
  const { user, attributes = {}, token: source, ack = "auto", fallback, WebSocket: Socket = globalThis.WebSocket } = options;
  if (!Socket) throw new TypeError("no WebSocket: pass options.WebSocket");
  const address = new URL(String(base).replace(/^ws/, "http"), globalThis.location?.href);
  address.pathname = address.pathname.replace(/\/?$/, "/");
  for (const pair of Object.entries(attributes)) address.searchParams.set(...pair);

  const listeners = new Set<[name: string, listener: (event: never) => unknown]>();
  let link: Link | undefined;
  /** Whether the server has said hello, and when. */
  let isOpen = false;
  let openedAt = 0;
  /** Each attempt to connect has its own. What an older one brings is thrown away. */
  let generation = 0;
  let isFallback = false;
  let failures = 0;
  let waitEnds = 0;
  let returnAfterMs: number | undefined;
  let pingMs: number;
  let pongMs: number;
  let bytesMax: number;
  /** Pings that are not answered. A server that doesn't know them answers with an error. */
  let pings = 0;

  /** Where this client is in its mailbox. */
  let position: Position | undefined;
  /** The epoch of the last hello. */
  let epoch: string | undefined;
  /** Whether the server has answered the resume. */
  let isResumed = false;
  /** Messages that came before that answer, since the server waited no longer. It may send them again. */
  const early = new Set<number>();

  /** What happens if nothing else does: a deadline, a ping, or another attempt. */
  const next = timer();
  const acking = acks(
    () => position?.seq ?? 0,
    () => (isResumed ? link : undefined),
  );
  const write = (frame: string): void => link?.send(frame);
  const sending = sends(write);
  let tokening: Tokens | undefined;
  /** Tells the listeners. What one throws is reported as any error that nobody handles. */
  const emit = <K extends keyof Events<In>>(name: K, event: Events<In>[K]): Promise<unknown>[] =>
    [...listeners].flatMap(([its, listener]) =>
      its === name ? new Promise((resolve) => resolve(listener(event as never))).catch((error) => void Promise.reject(error)) : [],
    );
  const enter = (to: State): void => {
    client.state = to;
    emit("state", to);
  };
  const isStopped = (): boolean => client.state.name === "stopped";
  /** Returns whether it is still so: a function of what began now. */
  const current = (): (() => boolean) => {
    const own = generation;
    return () => own === generation;
  };

  // Connecting.

  const listen = (how: "add" | "remove"): void =>
    ["online", "pageshow", "visibilitychange"].forEach((name) => globalThis[`${how}EventListener`]?.(name, wake));

  const start = (): void => {
    tokening = source && tokens(source, renew);
    listen("add");
    failures = 0;
    open();
  };

  const open = async (): Promise<void> => {
    generation++;
    const isCurrent = current();
    enter({ name: "connecting" });
    let token: Token;
    try {
      if (isCurrent()) token = await tokening?.get();
    } catch (error) {
      return void (isCurrent() && lost(LOST, `no token: ${error}`));
    }
    if (!isCurrent()) return;
    if (tokening && !token) return noToken();
    next(CONNECT_DEADLINE_MS, () => lost(LOST, "no hello in time"));
    try {
      const opening: Opening = {
        at: (way, end = "") => new URL(`${way}/${encodeURIComponent(user)}${end}${address.search}`, address),
        token,
        position,
        onframe: (text) => isCurrent() && frame(text),
        onend: (code, reason, afterMs) => isCurrent() && lost(code, reason, afterMs),
      };
      link = fallback && isFallback ? fallback(opening) : websocket(opening, Socket);
    } catch (error) {
      // The same call would fail again: a page of https that may not open a socket of ws, for example.
      stop(LOST, String(error));
    }
  };

  const lost = (code: number, reason: string, afterMs = returnAfterMs): void => {
    // What can't be reached this way may be reached another way.
    if (!isOpen) isFallback = !isFallback;
    else if (Date.now() - openedAt >= GOOD_AFTER_MS) failures = 0;
    detach()?.close();
    let then = afterClose(code);
    if (tokening?.closed(code)) {
      // Once, until a server accepts a token.
      then = "now";
      failures = 0;
    }
    if (then === "stop") return stop(code, reason);
    const own = pause(then, failures, Math.random());
    // The server's wish wins, but not against a client that has failed before.
    wait((afterMs ?? -1) >= 0 ? Math.max(afterMs!, failures && own) : own, code, reason);
  };

  const wait = (afterMs: number, code: number, reason: string): void => {
    waitEnds = Date.now() + afterMs;
    next(afterMs, () => {
      failures++;
      open();
    });
    enter({ name: "waiting", afterMs, code, reason });
  };

  const stop = (code: number, reason: string): void => {
    if (isStopped()) return;
    listen("remove");
    const resumed = isResumed ? link : undefined;
    const last = detach();
    // Listeners may still be at work, and return at once: their messages are acked too.
    setTimeout(() => {
      acking.send(resumed);
      last?.close();
    });
    tokening?.stop();
    enter({ name: "stopped", code, reason });
    sending.stop();
  };

  const noToken = (): void => stop(UNAUTHORIZED, "no other token");

  /** Gives the connection up, whatever comes of it later. */
  const detach = (): Link | undefined => {
    const last = link;
    link = returnAfterMs = undefined;
    generation++;
    pings = 0;
    isOpen = isResumed = false;
    next();
    sending.lost();
    return last;
  };

  const wake = (): void => {
    if (globalThis.document?.hidden) return;
    const { state } = client;
    const soon = Math.random() * WAKE_MAX_MS;
    if (state.name === "waiting" && soon < waitEnds - Date.now()) wait(soon, state.code, state.reason);
    if (isOpen && !pings) ping(Math.min(pongMs, WAKE_DEADLINE_MS));
  };

  /** Brings another token to the connection that is open, if one is, and then says when the next one is due. */
  const renew = (ask: () => Promise<Token>, later: () => void): void => {
    if (!isOpen) return;
    // A token that comes late is for another connection, which has waited for it itself.
    const isCurrent = current();
    ask()
      .then(
        (token) => isCurrent() && (token ? write(JSON.stringify({ type: "auth", token })) : noToken()),
        (error) => isCurrent() && emit("error", new SignalpostError("token", String(error))),
      )
      .then(() => isCurrent() && later());
  };

  // Reading.

  const frame = (text: unknown): unknown => {
    if (isOpen) alive();
    let frame: any;
    try {
      // Binary frames are not of signalpost.v1, but some libraries' buffers can be parsed.
      frame = typeof text === "string" && JSON.parse(text);
    } catch {}
    const data = frame?.data ?? {};
    switch (frame?.type) {
      case "hello":
        return hello(data);
      case "resume":
        return resumed(data);
      case "message":
        return message(frame, text as string);
      case "auth":
        return tokening?.lives(data.token_ends_in_ms);
      case "reconnect":
        return (returnAfterMs = data.after_ms);
      case "pong":
        pings = 0;
        return sending.open(bytesMax, true);
      case "taken":
        return sending.settle(frame.id);
      case "error":
        return refused(frame.id, new SignalpostError(data.code, data.detail));
    }
    // Others are of a newer server.
    return typeof frame?.type === "string" || broken();
  };

  /** Reads on from the last message that is certain, over another connection. */
  const broken = (): void => lost(LOST, "not signalpost.v1");

  const hello = ({ session, epoch: its, limits = {}, token_ends_in_ms }: Hello): void => {
    if (isOpen || typeof its !== "string") return broken();
    isOpen = true;
    openedAt = Date.now();
    if (its !== epoch) {
      early.clear();
      acking.clear();
    }
    epoch = its;
    pingMs = Math.max(OFTEN_MS, limits.ping_interval_ms || 25_000);
    pongMs = Math.max(OFTEN_MS, limits.pong_deadline_ms || 10_000);
    tokening?.lives(token_ends_in_ms);
    // Tells whether the server answers messages.
    ping(pongMs);
    bytesMax = limits.message_bytes_max || Infinity;
    enter({ name: "open", session });
  };

  const resumed = ({ recovered, from }: { recovered: boolean; from: number }): void => {
    if (!isOpen || !isSeq(from)) return broken();
    isResumed = true;
    position = { epoch: epoch!, seq: from };
    // What was acked may have been lost with the last connection.
    acking.send(link, 0);
    if (recovered !== true) emit("gap", { epoch: epoch!, from });
  };

  const message = ({ seq, data, data_base64 }: Envelope<In>, raw: string): void => {
    if (!isOpen || !isSeq(seq) || early.size > EARLY_MAX) return broken();
    if (position?.epoch === epoch && seq <= position!.seq) return;
    const isKnown = early.has(seq);
    if (isResumed) {
      position!.seq = seq;
      for (const one of early) if (one <= seq) early.delete(one);
    } else {
      early.add(seq);
    }
    if (isKnown) return;

    if (data_base64 !== undefined) data = Uint8Array.from(atob(data_base64), (char) => char.charCodeAt(0)) as In;
    const own = epoch;
    const done = (how: Options["ack"]): void => {
      if (ack === how && own === epoch) acking.done(seq);
    };
    if (ack === "auto") acking.begin(seq);
    Promise.all(emit("message", { data, seq, raw, ack: () => done("manual") })).then(() => done("auto"));
  };

  const refused = (id: string, error: SignalpostError): void => {
    if (sending.settle(id, error)) return;
    // A server that doesn't know pings answers them so, and doesn't answer messages.
    if (error.code === "invalid_frame" && pings) {
      pings--;
      sending.open(bytesMax, false);
    } else emit("error", error);
  };

  // Liveness: a browser hides the server's pings from the page.

  const alive = (): void => {
    next(pingMs, () => ping(pongMs));
  };

  const ping = (deadlineMs: number): void => {
    pings++;
    next(deadlineMs, () => lost(LOST, "no answer to a ping"));
    write('{"type":"ping"}');
  };

  const on = <K extends keyof Events<In>>(name: K, listener: (event: Events<In>[K]) => unknown): (() => void) => {
    const one: [string, typeof listener] = [name, listener];
    listeners.add(one);
    return () => listeners.delete(one);
  };
  Object.assign(client, {
    on,
    messages: ({ signal }: { signal?: AbortSignal } = {}) => messages<In>(on, signal),
    send(data: unknown) {
      const sent = sending.add(data);
      if (isStopped()) sending.stop();
      return sent;
    },
    connect() {
      if (isStopped()) start();
    },
    close: () => stop(1000, "closed by the client"),
  });
  start();
}

function isSeq(seq: unknown): seq is number {
  return Number.isSafeInteger(seq) && (seq as number) >= 0;
}
