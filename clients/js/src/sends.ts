import { SENDS_MAX } from "./bounds.js";
import { SignalpostError } from "./errors.js";

interface Send {
  text: string;
  isSent?: boolean;
  done(error?: SignalpostError): void;
}

/** The messages of `send()` that are not settled, in their order. */
export interface Sends {
  add(data: unknown): Promise<void>;
  /** There is a connection, which takes messages of this size. If it doesn't answer them, they are settled when they are written. */
  open(bytesMax: number, isAnswered: boolean): void;
  /** Settles one, and returns whether there was one. */
  settle(id: string, error?: SignalpostError): boolean;
  /** The connection is gone: what was sent may have been taken. */
  lost(): void;
  stop(): void;
}

export function sends(write: (frame: string) => void): Sends {
  const all = new Map<string, Send>();
  let ids = 0;
  let bytesMax = 0;
  let isAnswered = false;

  const settle = (id: string, error?: SignalpostError): boolean => {
    all.get(id)?.done(error);
    return all.delete(id);
  };
  const flush = (): void => {
    if (!bytesMax) return;
    all.forEach((send, id) => {
      if (send.isSent) return;
      // The server would close the connection.
      if (new Blob([send.text]).size > bytesMax) return settle(id, new SignalpostError("too_large", `over ${bytesMax} bytes`));
      send.isSent = true;
      write(send.text);
      if (!isAnswered) settle(id);
    });
  };
  return {
    add: (data) =>
      new Promise((resolve, reject) => {
        if (all.size >= SENDS_MAX) throw new SignalpostError("full", `${SENDS_MAX} messages wait`);
        const id = String(++ids);
        const text = JSON.stringify({ type: "message", id, want: "taken", data: data ?? null });
        all.set(id, { text, done: (error) => (error ? reject(error) : resolve()) });
        flush();
      }),
    open(max, does) {
      bytesMax = max;
      isAnswered = does;
      flush();
    },
    settle,
    lost() {
      bytesMax = 0;
      all.forEach(({ isSent }, id) => isSent && settle(id, new SignalpostError("lost", "the connection ended")));
    },
    stop: () => all.forEach((_, id) => settle(id, new SignalpostError("stopped", "the client stopped"))),
  };
}
