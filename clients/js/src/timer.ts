import { TIMER_MAX_MS } from "./bounds.js";

/** Forgets what it was set to before, and does something else later, if that is given. */
export type Timer = (ms?: number, then?: () => void) => void;

export function timer(): Timer {
  let id: ReturnType<typeof setTimeout> | undefined;
  return (ms = 0, then) => {
    clearTimeout(id);
    if (then) id = setTimeout(then, Math.min(ms, TIMER_MAX_MS));
  };
}
