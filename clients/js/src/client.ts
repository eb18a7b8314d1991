import { connect } from "./connection.js";
import type { Events, Message, Options, State } from "./types.js";

/** A user's messages, over as many connections as it takes. `In` and `Out`: what is read and sent, as JSON. */
export class Signalpost<In = unknown, Out = unknown> {
  declare readonly state: State;

  /** Calls `listener` for each event of this name. Returns a function that takes it away. */
  declare readonly on: <K extends keyof Events<In>>(name: K, listener: (event: Events<In>[K]) => unknown) => () => void;

  /**
   * Returns the messages from this call on. One is acked (`ack: "auto"`) when the next is asked for. The loop ends with `close()` or `signal`,
   * and throws if the server stopped the client or if the loop is too slow.
   */
  declare readonly messages: (options?: { signal?: AbortSignal }) => AsyncGenerator<Message<In>, void, undefined>;

  /**
   * Sends a message, or keeps it until there is a connection. Resolves when its events are committed, and rejects with the server's reason.
   * With a server that doesn't answer messages, it resolves when it is written.
   */
  declare readonly send: (data: Out) => Promise<void>;

  /** Connects again after a stop. */
  declare readonly connect: () => void;

  /** Closes the connection, after acking what the listeners are done with. */
  declare readonly close: () => void;

  /** `url`: where the server is, with its base path, as in `wss://example.com/api/pool`. Connects at once. */
  constructor(url: string | URL, options: Options) {
    connect<In>(this, url, options);
  }
}
