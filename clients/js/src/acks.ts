import { timer } from "./timer.js";

/** Acks are gathered: the server only needs them to begin a session without a resume. */
const ACK_AFTER_MS = 1000;
const ACK_AFTER_MESSAGES = 64;

/** What the client is done with, in one epoch. */
export interface Acks {
  /** A message that listeners work on: nothing after it is acked before `done`. */
  begin(seq: number): void;
  done(seq: number): void;
  /** Everything up to `seq` is done. */
  upto(seq: number): void;
  /** Another connection goes on: what was acked may have been lost with the last one. */
  again(): void;
  /** Sends what is due now, once by another way. */
  send(write?: (frame: string) => boolean): void;
  pause(): void;
  /** The epoch is over. */
  clear(): void;
}

/** `newest`: the last message that was read. `write`: sends a frame, and says whether it could. */
export function acks(newest: () => number, write: (frame: string) => boolean): Acks {
  const later = timer();
  const begun = new Set<number>();
  let last = 0;
  let waiting = 0;
  let acked = 0;

  const send = (to = write): void => {
    later.clear();
    // A message that came early may be acked only when what came before it is certain.
    let seq = Math.min(last, newest());
    for (const open of begun) seq = Math.min(seq, open - 1);
    if (seq <= acked || !to(`{"type":"ack","seq":${seq}}`)) return;
    acked = seq;
    waiting = 0;
  };
  const upto = (seq: number): void => {
    last = Math.max(last, seq);
    if (++waiting >= ACK_AFTER_MESSAGES) send();
    else if (!later.isSet()) later.set(ACK_AFTER_MS, () => send());
  };
  return {
    begin: (seq) => begun.add(seq),
    done(seq) {
      begun.delete(seq);
      upto(seq);
    },
    upto,
    again() {
      acked = 0;
      send();
    },
    send,
    pause: later.clear,
    clear() {
      begun.clear();
      last = waiting = acked = 0;
    },
  };
}
