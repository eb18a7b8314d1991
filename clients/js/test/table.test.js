import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { afterClose, pause } from "../dist/backoff.js";
import { GOOD_AFTER_MS } from "../dist/bounds.js";

const table = JSON.parse(readFileSync(new URL("../../close-codes.json", import.meta.url), "utf8"));
const { now_max_ms, first_ms, last_ms, floor_ms, good_after_ms } = table.delays;

test("the ranges of the table are whole, and each is what the client does", () => {
  let next = 1000;
  for (const { from, to, then } of table.ranges) {
    assert.equal(from, next, "no code is left out, and none is there twice");
    for (let code = from; code <= to; code++) assert.equal(afterClose(code), then, String(code));
    next = to + 1;
  }
  assert.equal(next, 5000);
});

test("each code of the table is in a range that says the same", () => {
  for (const { code, then } of table.codes) {
    assert.equal(table.ranges.find(({ from, to }) => from <= code && code <= to).then, then, String(code));
  }
});

test("what is no close code stops the client", () => {
  for (const code of [undefined, null, NaN, -1, 0, 999, 5000, 65_535]) assert.equal(afterClose(code), "stop", String(code));
});

test("waits are the table's: full jitter above a floor, doubled up to a bound", () => {
  assert.equal(GOOD_AFTER_MS, good_after_ms);
  for (let failures = 0; failures < 2000; failures = failures * 2 + 1) {
    const longest = Math.min(last_ms, first_ms * 2 ** failures);
    for (const chance of [0, 0.5, 1]) {
      const expected = floor_ms + (longest - floor_ms) * chance;
      assert.equal(pause("back_off", failures, chance), expected);
      assert.equal(pause("now", failures, chance), failures ? expected : now_max_ms * chance);
    }
  }
});
