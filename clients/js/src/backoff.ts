// Whether and when to connect again. Pure. The numbers are those of clients/close-codes.json, which a test compares.

import { FIRST_MS, FLOOR_MS, LAST_MS, NOW_MAX_MS } from "./bounds.js";

export type Then = "now" | "back_off" | "stop";

/** Returns what to do after a close with this code. */
export function afterClose(code: number): Then {
  const is = (codes: RegExp): boolean => codes.test(String(code));
  return is(/^(1001|1012|40..)$/) ? "now" : is(/^(1005|1006|1011|1013|41..)$/) ? "back_off" : "stop";
}

/** Returns how long to wait after this number of failures in a row. `chance` is from 0 to 1. */
export function pause(then: Then, failures: number, chance: number): number {
  // The client backs off too from a server that says "now" each time.
  if (then === "now" && !failures) return NOW_MAX_MS * chance;
  return FLOOR_MS + (Math.min(LAST_MS, FIRST_MS * 2 ** failures) - FLOOR_MS) * chance;
}
