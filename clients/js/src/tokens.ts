import { timer } from "./timer.js";
import type { Options, TokenReason } from "./types.js";

/** After that, another call may begin, and what the first one brings is thrown away. */
const CALL_DEADLINE_MS = 30_000;
/** A token that no server has accepted yet is good for this long, as far as anyone knows. */
const UNKNOWN_MS = 60_000;
/** The shortest wait for another token, whatever the server says. */
const OFTEN_MS = 1000;

type Token = string | null | undefined;

/** The token of a client, and when another one is due. */
export interface Tokens {
  /** Returns the token for a connection: the one that is there, or another one if that is over or was refused. */
  get(): Promise<string | undefined>;
  /** The server has refused it. Returns whether another one may help. */
  refuse(): boolean;
  /** It is over, or not to be used again. */
  forget(reason: TokenReason): void;
  /** The server has accepted it, for a time if it says so. */
  lives(forMs?: number): void;
  /** There is no connection that needs another token. */
  pause(): void;
  stop(): void;
}

/** `renew`: brings another token to the connection that is open, and returns whether it still is. */
export function tokens(fetchToken: NonNullable<Options["token"]>, renew: (call: Promise<Token>) => Promise<boolean>): Tokens {
  const deadline = timer();
  const refresh = timer();
  let token: Token;
  /** The one that the server has refused, until it accepts one. */
  let refused: Token;
  let reason: TokenReason = "connect";
  let call: Promise<Token> | undefined;
  let ends = Infinity;
  /** When another one is due, in milliseconds since the Unix epoch. */
  let due = Infinity;

  const forget = (why: TokenReason): void => {
    token = undefined;
    due = Infinity;
    reason = why;
  };
  /** Asks for a token, or waits for the one that was asked for already. */
  const ask = (): Promise<Token> => {
    if (call) return call;
    const own: Promise<Token> = new Promise<Token>((resolve, reject) => {
      deadline.set(CALL_DEADLINE_MS, () => reject("no token in time"));
      (async () => fetchToken({ reason }))().then(resolve, reject);
    })
      .then((fresh) => {
        if (call !== own) throw "the token came too late";
        due = Date.now() + UNKNOWN_MS;
        return (token = fresh);
      })
      .finally(() => {
        if (call !== own) return;
        deadline.clear();
        call = undefined;
      });
    return (call = own);
  };
  const later = (): void => {
    refresh.clear();
    const left = ends - Date.now();
    if (!(left > 0 && left < Infinity)) return;
    // Before the end by 10 % of it, from 5 to 60 s, and not for all clients at once; a short one at half of it.
    const margin = Math.min(Math.max(left / 10, 5000), 60_000) * (1 + Math.random());
    const wait = Math.max(left / 2, left - margin, OFTEN_MS);
    due = Date.now() + wait;
    refresh.set(wait, () => {
      reason = "expiring";
      // Again, unless the server says until when the new one is good.
      renew(ask()).then((isOpen) => isOpen && later());
    });
  };
  return {
    async get() {
      if (Date.now() >= due) forget("expiring");
      token ||= await ask();
      // The same one would be refused again.
      return token && token !== refused ? token : undefined;
    },
    refuse() {
      if (refused) return false;
      refused = token;
      forget("refused");
      return true;
    },
    forget,
    lives(forMs = Infinity) {
      refused = undefined;
      reason = "connect";
      ends = Date.now() + forMs;
      due = Infinity;
      later();
    },
    pause: refresh.clear,
    stop() {
      deadline.clear();
      refresh.clear();
      call = refused = undefined;
      forget("connect");
    },
  };
}
