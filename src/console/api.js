// Requests to the server. The key is kept for this tab only, and sent as Bearer: there is no cookie, so no other page can use it.

const KEY = "signalpost.key";
export const base = document.documentElement.dataset.base;

/** An answer that is not a success: the server's problem document (RFC 9457), or what stands in its place. */
export class Problem extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: text => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

const unauthorized = new Set();
/** Calls `listener` whenever the server asks for a key or refuses the one that it was shown. */
export function onUnauthorized(listener) {
  unauthorized.add(listener);
  return () => unauthorized.delete(listener);
}

/** Parses JSON. A number with more digits than JavaScript keeps stays as it was written, if the browser can do that. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    const digits = typeof value === "number" && context?.source;
    return digits && digits.replace(/\D/g, "").length > 15 && JSON.rawJSON ? JSON.rawJSON(digits) : value;
  });
}

async function ask(url, { method = "GET", body, headers, signal } = {}) {
  const shown = key.get();
  let response;
  try {
    response = await fetch(url, {
      method, body, signal, cache: "no-store", credentials: "omit", redirect: "error",
      headers: { ...(shown ? { Authorization: `Bearer ${shown}` } : {}), ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", "The server does not answer.");
  }
  if (response.ok) return response;
  const text = await response.text();
  let problem = {};
  try { problem = JSON.parse(text); } catch { /* Not a problem document: something in front of the server answered. */ }
  if (response.status === 401) unauthorized.forEach(listener => listener());
  throw new Problem(response.status, problem.code ?? "status", problem.detail ?? `The server answered ${response.status} ${response.statusText}.`);
}

/** Returns the JSON of a successful answer below the base path. */
export async function call(path, options) {
  return parse(await (await ask(base + path, options)).text());
}

/** Returns what `/readyz` says: whether the server takes sockets, and a warning if it is exposed. */
export async function ready() {
  try {
    const [, warning] = (await (await ask("/readyz")).text()).split("\n");
    return { isReady: true, warning };
  } catch (error) {
    if (error.status !== 503) throw error;
    return { isReady: false, detail: error.message };
  }
}

/** Reads server-sent events until the stream ends, and calls `take(kind, data)` for each. */
export async function stream(path, take, signal) {
  const response = await ask(base + path, { headers: { Accept: "text/event-stream" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (text + value).split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      let kind = "", data = "";
      for (const line of frame.split("\n")) {
        if (line.startsWith("event: ")) kind = line.slice(7);
        if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data) take(kind, parse(data));
    }
  }
}
