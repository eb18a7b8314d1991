import { SignalpostError } from "./errors.js";

/** Messages that are not settled: a quarter of what the server allows at once. */
const SENDS_MAX = 256;

interface Send {
  text: string;
  isSent?: boolean;
  resolve(): void;
  reject(error: SignalpostError): void;
}

/** The messages of `send()` that are not settled, in their order. */
export interface Sends {
  add(data: unknown): Promise<void>;
  /** There is a connection, which takes messages of this size. */
  open(bytesMax: number): void;
  /** Whether the server answers messages. If it doesn't, they are settled when they are written. */
  answers(does: boolean): void;
  /** Settles one, and returns whether there was one. */
  settle(id: string, error?: SignalpostError): boolean;
  /** The connection is gone: what was sent may have been taken. */
  lost(): void;
  stop(): void;
}

export function sends(write: (frame: string) => void): Sends {
  const all = new Map<string, Send>();
  const failure = (code: string, detail: string): SignalpostError => new SignalpostError(code, detail);
  let ids = 0;
  let bytesMax = 0;
  // Unknown until the server has answered the first ping.
  let isAnswered: boolean | undefined;

  const settle = (id: string, error?: SignalpostError): boolean => {
    const send = all.get(id);
    if (error) send?.reject(error);
    else send?.resolve();
    return all.delete(id);
  };
  const settleSent = (error?: SignalpostError): void => all.forEach(({ isSent }, id) => isSent && settle(id, error));
  const flush = (): void => {
    if (!bytesMax) return;
    all.forEach((send, id) => {
      if (send.isSent) return;
      // The server would close the connection.
      if (new TextEncoder().encode(send.text).length > bytesMax) return settle(id, failure("too_large", `over ${bytesMax} bytes`));
      send.isSent = true;
      write(send.text);
      if (isAnswered === false) settle(id);
    });
  };
  return {
    add: (data) =>
      new Promise((resolve, reject) => {
        if (all.size >= SENDS_MAX) throw failure("full", `${SENDS_MAX} messages are not settled`);
        const id = String(++ids);
        all.set(id, { text: JSON.stringify({ type: "message", id, want: "taken", data: data ?? null }), resolve, reject });
        flush();
      }),
    open(max) {
      bytesMax = max;
      flush();
    },
    answers(does) {
      isAnswered = does;
      if (!does) settleSent();
    },
    settle,
    lost() {
      bytesMax = 0;
      isAnswered = undefined;
      settleSent(failure("lost", "the connection ended before the server answered"));
    },
    stop: () => all.forEach((_, id) => settle(id, failure("stopped", "the client has stopped"))),
  };
}
