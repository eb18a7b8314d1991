/** A longer one would fire at once. */
const TIMER_MAX_MS = 2 ** 31 - 1;

export interface Timer {
  isSet(): boolean;
  /** Forgets what it was set to before. */
  set(ms: number, then: () => void): void;
  clear(): void;
}

export function timer(): Timer {
  let id: ReturnType<typeof setTimeout> | undefined;
  const clear = (): void => {
    clearTimeout(id);
    id = undefined;
  };
  return {
    isSet: () => id !== undefined,
    set(ms, then) {
      clear();
      id = setTimeout(() => {
        id = undefined;
        then();
      }, Math.min(ms, TIMER_MAX_MS));
    },
    clear,
  };
}
