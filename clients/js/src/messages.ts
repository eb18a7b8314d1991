import { SignalpostError } from "./errors.js";
import type { Events, Message } from "./types.js";

/** Messages that wait for the loop: as many as the server keeps for a user. */
const BEHIND_MAX = 1000;

type On<In> = <K extends "message" | "state">(name: K, listener: (event: Events<In>[K]) => unknown) => () => void;

/** Returns the messages from this call on, for a loop. Each is done when the next is asked for. */
export function messages<In>(on: On<In>, signal?: AbortSignal): AsyncGenerator<Message<In>, void, undefined> {
  const queue: [Message<In>, () => void][] = [];
  let error: SignalpostError | undefined;
  let isOver = signal?.aborted;
  let wake = (): void => {};
  const end = (code?: string, detail = ""): void => {
    if (isOver) return;
    if (code) error = new SignalpostError(code, detail);
    isOver = true;
    wake();
  };
  const abort = (): void => end();
  signal?.addEventListener("abort", abort);
  const offs = [
    on("message", (message) => {
      if (queue.length >= BEHIND_MAX) end("behind", `${BEHIND_MAX} messages wait for the loop`);
      // What the loop doesn't get to is never done, so it is not acked.
      return new Promise<void>((done) => {
        if (isOver) return;
        queue.push([message, done]);
        wake();
      });
    }),
    on("state", (state) => {
      if (state.name === "stopped") end(state.code === 1000 ? "" : "stopped", `${state.code} ${state.reason}`);
    }),
  ];
  return (async function* () {
    try {
      for (;;) {
        const next = queue.shift();
        if (next) {
          yield next[0];
          next[1]();
        } else if (isOver) {
          if (error) throw error;
          return;
        } else {
          await new Promise<void>((resolve) => (wake = resolve));
        }
      }
    } finally {
      offs.forEach((off) => off());
      signal?.removeEventListener("abort", abort);
    }
  })();
}
