// What a policy in JavaScript needs beside its own rules: JSON that keeps every digit, ids, and a report of what goes wrong.

import { panicked } from "signalpost:policy/diagnostics@0.1.0";

// Reading more would take a call longer than it may (limits.call_deadline_ms).
const JSON_CHARS_MAX = 16_384;
const JSON_VALUES_MAX = 300;

// What the server takes by default: sockets.user_id_bytes_max, groups.name_bytes_max.
const ID_BYTES_MAX = 128;
const NAME_BYTES_MAX = 128;

const ID = "an id: a whole number, or a string, of 1 to 128 bytes, without control characters and without blanks at its ends";

// What to use instead of what is not defined here.
const INSTEAD = {
  console: "use the interface `log`",
  print: "use the interface `log`",
  crypto: "use the event's `id`",
  fetch: "publish an event for a sink",
  setTimeout: "a policy can't wait",
  TextEncoder: "use `encode` of kit.js",
  TextDecoder: "use `decode` of kit.js",
};

// Wraps the functions of an interface. A refusal is thrown, and so is the text of `configure`. An error is a defect instead: the server's
// fault report gets its message.
export function reporting(functions) {
  const wrapped = Object.entries(functions).map(([name, call]) => [name, (...given) => {
    try {
      return call(...given);
    } catch (thrown) {
      if (thrown instanceof Error) {
        const missing = /^(\w+) is not defined$/.exec(thrown.message)?.[1];
        const instead = Object.hasOwn(INSTEAD, missing) ? `: ${INSTEAD[missing]}` : "";
        panicked(`${thrown}${instead}\n${thrown.stack}`);
      }
      throw thrown;
    }
  }]);
  return Object.fromEntries(wrapped);
}

// The producer finds a refusal that is thrown in the receipt.
export function refusal(code, detail) {
  return { code, detail };
}

// Reads the JSON of a body; `undefined` if it has none, or too much. Numbers stay as they were written: `JSON.stringify` writes each digit
// again, `id` and `number` read them.
export function parse(body) {
  if (body?.tag !== "json" || isTooMuch(body.val)) return undefined;
  try {
    return JSON.parse(body.val, (_, value, { source }) => (typeof value === "number" ? JSON.rawJSON(source) : value));
  } catch {
    return undefined; // The server has seen that it is JSON: it is nested too deep.
  }
}

// Reads the members of an event's data, or refuses what is not an object.
export function members(body) {
  const data = parse(body);
  if (data === undefined && body?.tag === "json") {
    const most = `${JSON_CHARS_MAX} characters or ${JSON_VALUES_MAX} values`;
    throw refusal("invalid_data", `the event's data has more than ${most}, or too many of them in each other`);
  }
  const isObject = typeof data === "object" && data !== null && !Array.isArray(data) && !JSON.isRawJSON(data);
  if (!isObject) throw refusal("invalid_data", "the event's data should be a JSON object");
  return data;
}

// Each value follows one of these marks, but for the first. Some in strings are counted too.
function isTooMuch(json) {
  const marks = () => [",", "[", "{"].reduce((count, mark) => count + json.split(mark).length - 1, 0);
  return json.length > JSON_CHARS_MAX || marks() > JSON_VALUES_MAX;
}

export function required(data, name) {
  if (!Object.hasOwn(data, name)) throw refusal("missing_field", `\`${name}\` is missing`);
  return data[name];
}

// Reads the id of a user or the like, as a string: the number 1001 is the user "1001".
export function id(data, name) {
  const value = required(data, name);
  if (JSON.isRawJSON(value) && /^(0|-?[1-9][0-9]*)$/.test(value.rawJSON) && value.rawJSON.length <= ID_BYTES_MAX) return value.rawJSON;
  const isId = typeof value === "string" && value !== "" && bytes(value) <= ID_BYTES_MAX && value.isWellFormed();
  if (isId && !/^\p{White_Space}|\p{White_Space}$|\p{Cc}/u.test(value)) return value;
  throw refusal("invalid_field", `\`${name}\` should be ${ID}`);
}

// Makes the name of a group, or a collapse key, of an id: `prefixed("pool:", id(data, "pool_id"), "pool_id")`.
export function prefixed(prefix, id, name) {
  const most = NAME_BYTES_MAX - bytes(prefix);
  if (bytes(id) > most) throw refusal("invalid_field", `\`${name}\` has ${bytes(id)} bytes: it should have at most ${most}`);
  return prefix + id;
}

// Reads a number to calculate with.
export function number(data, name) {
  const value = required(data, name);
  if (!JSON.isRawJSON(value)) throw refusal("invalid_field", `\`${name}\` should be a number`);
  return Number(value.rawJSON);
}

// The bytes of a text in UTF-8, as `state` keeps them, and the text of such bytes. QuickJS has no TextEncoder.
export function encode(text) {
  return Uint8Array.from(unescape(encodeURIComponent(text)), (byte) => byte.charCodeAt(0));
}

export function decode(bytes) {
  return decodeURIComponent(Array.from(bytes, (byte) => `%${byte.toString(16).padStart(2, "0")}`).join(""));
}

// The length in UTF-8.
function bytes(text) {
  return Array.from(text, (char) => char.codePointAt(0)).reduce((sum, c) => sum + (c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4), 0);
}
