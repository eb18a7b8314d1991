import { BEHIND_MAX } from "./bounds.js";
import { SignalpostError } from "./errors.js";
import type { Events, Message } from "./types.js";

type On<In> = <K extends "message" | "state">(name: K, listener: (event: Events<In>[K]) => unknown) => () => void;

/** Returns the messages from this call on, for a loop. Each is done when the next is asked for. */
export function messages<In>(on: On<In>, signal?: AbortSignal): AsyncGenerator<Message<In>, void, undefined> {
  const queue: [Message<In>, () => void][] = [];
  /** Whether it is over, and the error that it ends with. */
  let over: [SignalpostError | undefined] | undefined;
  let wake = (): void => {};
  const end = (error?: SignalpostError): void => {
    over ??= [error];
    wake();
  };
  const abort = (): void => end();
  if (signal?.aborted) end();
  signal?.addEventListener("abort", abort);
  const offs = [
    // What the loop doesn't get to is never done, so it is not acked.
    on("message", (message) => new Promise<void>((done) => {
      if (queue.length >= BEHIND_MAX) end(new SignalpostError("behind", `${BEHIND_MAX} messages wait`));
      if (!over) queue.push([message, done]);
      wake();
    })),
    on("state", (state) => {
      if (state.name === "stopped") end(state.code === 1000 ? undefined : new SignalpostError("stopped", `${state.code} ${state.reason}`));
    }),
    () => signal?.removeEventListener("abort", abort),
  ];
  return (async function* () {
    try {
      for (;;) {
        const next = queue.shift();
        if (next) {
          yield next[0];
          next[1]();
        } else if (over) {
          if (over[0]) throw over[0];
          return;
        } else {
          await new Promise<void>((resolve) => (wake = resolve));
        }
      }
    } finally {
      offs.forEach((off) => off());
    }
  })();
}
