import { CALL_DEADLINE_MS, EXPIRED, MARGIN_MAX_MS, MARGIN_MIN_MS, OFTEN_MS, UNAUTHORIZED, UNKNOWN_MS } from "./bounds.js";
import { timer } from "./timer.js";
import type { Options, TokenReason } from "./types.js";

export type Token = string | null | undefined;

/** The token of a client, from a start to a stop, and when another one is due. */
export interface Tokens {
  /** Returns the token for a connection: the one that is there, or another one if that is over or was refused. */
  get(): Promise<Token>;
  /** A connection was closed with this code. Returns whether the token was refused and another one may help. */
  closed(code: number): boolean;
  /** The server has accepted it, for a time if it says so. */
  lives(forMs?: number): void;
  /** Nothing needs one any longer. */
  stop(): void;
}

/** `renew`: asks for another token and brings it to the connection that is open, if one is. After that, while it is open, it calls `later`. */
export function tokens(source: NonNullable<Options["token"]>, renew: (ask: () => Promise<Token>, later: () => void) => void): Tokens {
  const deadline = timer();
  const refresh = timer();
  let token: Token;
  /** The one that the server has refused, until it accepts one. */
  let refused: Token;
  let reason: TokenReason = "connect";
  let call: Promise<Token> | undefined;
  let ends: number;
  /** When another one is due, in milliseconds since the Unix epoch. */
  let due: number;

  const forget = (why: TokenReason): void => {
    token = undefined;
    reason = why;
  };
  /** Asks for a token, or waits for the one that was asked for already. */
  const ask = (): Promise<Token> =>
    (call ??= new Promise<Token>((resolve, reject) => {
      deadline(CALL_DEADLINE_MS, () => reject("no token in time"));
      new Promise<Token>((answer) => answer(source({ reason }))).then(resolve, reject);
    })
      .then((fresh) => {
        due = Date.now() + UNKNOWN_MS;
        return (token = fresh);
      })
      .finally(() => (call = undefined)));
  const later = (): void => {
    const left = ends - Date.now();
    if (!(left > 0)) return refresh();
    // A short one at half of its life.
    const margin = Math.min(Math.max(left / 10, MARGIN_MIN_MS), MARGIN_MAX_MS) * (1 + Math.random());
    const wait = Math.max(left / 2, left - margin, OFTEN_MS);
    due = Date.now() + wait;
    refresh(wait, () => {
      reason = "expiring";
      // Again, unless the server says until when the new one is good.
      renew(ask, later);
    });
  };
  return {
    async get() {
      if (token && Date.now() >= due) forget("expiring");
      token ||= await ask();
      // The same one would be refused again.
      return token !== refused ? token : undefined;
    },
    closed(code) {
      if (code === EXPIRED) forget("expiring");
      if (code !== UNAUTHORIZED || refused) return false;
      refused = token;
      forget("refused");
      return true;
    },
    lives(forMs = Infinity) {
      refused = undefined;
      reason = "connect";
      ends = Date.now() + forMs;
      later();
    },
    stop() {
      deadline();
      refresh();
    },
  };
}
