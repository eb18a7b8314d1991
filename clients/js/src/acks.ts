import { ACK_AFTER_MESSAGES, ACK_AFTER_MS } from "./bounds.js";
import { timer } from "./timer.js";
import type { Link } from "./types.js";

/** What the client is done with, in one epoch. */
export interface Acks {
  /** A message that listeners work on: nothing after it is acked before `done`. */
  begin(seq: number): void;
  /** It is done, and so is everything before it that has not begun. */
  done(seq: number): void;
  /** Sends what is due now, beyond what was acked. */
  send(link?: Link, acked?: number): void;
  /** The epoch is over. */
  clear(): void;
}

/** `newest`: the last message that was read. `link`: the connection that takes acks, if there is one. */
export function acks(newest: () => number, link: () => Link | undefined): Acks {
  const later = timer();
  const begun = new Set<number>();
  let last = 0;
  let waiting = 0;
  let acked = 0;

  const send = (to = link(), beyond = acked): void => {
    later();
    waiting = 0;
    // A message that came early may be acked only when what came before it is certain.
    let seq = Math.min(last, newest());
    for (const open of begun) seq = Math.min(seq, open - 1);
    if (!to || seq <= beyond) return;
    acked = seq;
    to.send(`{"type":"ack","seq":${seq}}`);
  };
  return {
    begin: (seq) => begun.add(seq),
    done(seq) {
      begun.delete(seq);
      last = Math.max(last, seq);
      if (++waiting >= ACK_AFTER_MESSAGES) send();
      else if (waiting === 1) later(ACK_AFTER_MS, () => send());
    },
    send,
    clear() {
      begun.clear();
      last = acked = 0;
    },
  };
}
