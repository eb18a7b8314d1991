import type { SignalpostError } from "./errors.js";

/** Why a token is asked for: for a connection, because the last one ends or has ended, or because the server refused the last one. */
export type TokenReason = "connect" | "expiring" | "refused";

export interface Options {
  /** The user's id, 1 to 128 bytes. */
  user: string;
  /** Session attributes, on which formatting policies may depend. */
  attributes?: Record<string, string>;
  /** Fetches a token; nothing (`null`, `undefined`, `""`) stops the client. One call is under way at a time, for up to 30 s. */
  token?: (why: { reason: TokenReason }) => string | null | undefined | Promise<string | null | undefined>;
  /** When a message is acked: after all listeners are done with it (`auto`, the default), by `message.ack()`, or never. */
  ack?: "auto" | "manual" | "none";
  /** Another way to connect, for networks that let no WebSocket through: `sse`, of `signalpost-client/sse`. */
  fallback?: (opening: Opening) => Link;
  /** The class of the sockets, where there is no global one: `ws` in Node 20. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocket;
}

/** A message of the server. */
export interface Message<T> {
  readonly data: T;
  /** Grows within an epoch; not in steps of one. */
  readonly seq: number;
  /** The envelope as it was received, with all digits of its numbers. */
  readonly raw: string;
  /** Acks this message and all before it, if `ack` is `"manual"`. */
  ack(): void;
}

/** Messages may be missing before those that follow: load the state afresh. */
export interface Gap {
  readonly epoch: string;
  /** Messages after this seq follow. */
  readonly from: number;
}

export type State =
  | { readonly name: "connecting" }
  | { readonly name: "open"; readonly session: string }
  /** The client connects again after `afterMs`, or earlier if the page wakes or the network returns. */
  | { readonly name: "waiting"; readonly afterMs: number; readonly code: number; readonly reason: string }
  /** The client doesn't connect again by itself. 1000: `close()` was called. */
  | { readonly name: "stopped"; readonly code: number; readonly reason: string };

/** What a client tells its listeners. */
export interface Events<In> {
  message: Message<In>;
  gap: Gap;
  state: State;
  /** The server refused something that is not a message of `send()`, or there is no other token for an open connection. */
  error: SignalpostError;
}

export interface Position {
  epoch: string;
  seq: number;
}

/** One connection to the server. */
export interface Link {
  send(frame: string): void;
  /** Ends the connection. Nothing is heard of it afterwards. */
  close(): void;
}

/** What a connection needs to begin, and whom it tells. */
export interface Opening {
  /** Returns the address of this way to connect, and what follows it: `http:` or `https:`, with the session attributes as its query. */
  at(way: "ws" | "sse", end?: string): URL;
  token: string | null | undefined;
  position: Position | undefined;
  onframe(text: string): unknown;
  onend(code: number, reason: string, afterMs?: number): unknown;
}
