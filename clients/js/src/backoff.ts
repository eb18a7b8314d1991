// Whether and when to connect again. Pure. The numbers are those of clients/close-codes.json, which a test compares.

export type Then = "now" | "back_off" | "stop";

/** The longest delay before a client reconnects "now", so that many clients don't come back at the same moment. */
const NOW_MAX_MS = 100;
const FIRST_MS = 250;
const LAST_MS = 10_000;
/** Chance can't make a hot loop. Waits are even above it: cut off at it, a part of all clients would come at once. */
const FLOOR_MS = 50;
/** A connection that was open for this long was a good one: its end is a new failure. */
export const GOOD_AFTER_MS = 5000;

/** Returns what to do after a close with this code. */
export function afterClose(code: number): Then {
  if (code === 1001 || code === 1012 || (code >= 4000 && code < 4100)) return "now";
  if (code === 1005 || code === 1006 || code === 1011 || code === 1013 || (code >= 4100 && code < 4200)) return "back_off";
  return "stop";
}

/** Returns how long to wait after this number of failures in a row. `chance` is from 0 to 1. */
export function pause(then: Then, failures: number, chance: number): number {
  // The client backs off too from a server that says "now" each time.
  if (then === "now" && !failures) return NOW_MAX_MS * chance;
  return FLOOR_MS + (Math.min(LAST_MS, FIRST_MS * 2 ** failures) - FLOOR_MS) * chance;
}
