import type { Link, Opening } from "./types.js";

/** After that, the session is taken for gone. */
const POST_DEADLINE_MS = 10_000;

/** Reads server-sent events by the rules of the HTML standard. `take` gets each event's type and data; comments are silent. */
export function parser(take: (type: string, data: string) => void): (text: string) => void {
  let rest = "";
  let type = "";
  let data: string[] = [];
  return (text) => {
    // A carriage return at the end may be half of a line break.
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() as string;
    for (const line of lines) {
      if (!line) {
        if (data.length) take(type, data.join("\n"));
        type = "";
        data = [];
      }
      const [, name, value = ""] = /^([^:]*):? ?(.*)$/s.exec(line) as RegExpExecArray;
      if (name === "event") type = value;
      if (name === "data") data.push(value);
    }
  };
}

/** Connects with server-sent events, and sends each frame with a POST. */
export function sse({ url, user, token, position, onframe, onalive, onend }: Opening): Link {
  const stop = new AbortController();
  const { signal } = stop;
  const path = `/sse/${encodeURIComponent(user)}`;
  const headers: Record<string, string> = token ? { authorization: `Bearer ${token}` } : {};
  const at = (end: string): URL => {
    const address = new URL(url);
    address.pathname = address.pathname.replace(/\/?$/, path + end);
    return address;
  };
  let session = "";
  // One after the other, so that the frames keep their order.
  let up: Promise<unknown> = Promise.resolve();

  const end = (code: number, reason: string, afterMs?: number): void => {
    stop.abort();
    onend(code, reason, afterMs);
  };
  const lost = (reason: unknown): void => end(1006, String(reason));
  const refused = ({ status }: Response): void => end(status === 401 ? 4205 : 1006, `HTTP ${status}`);

  const read = parser((type, data) => {
    const frame = JSON.parse(data);
    if (type === "close") return end(frame.code, frame.reason, frame.after_ms);
    if (frame.type === "hello") session = frame.data.session;
    onframe(data);
  });

  (async () => {
    const address = at("");
    if (position) address.searchParams.set("last_event_id", `${position.epoch}.${position.seq}`);
    const response = await fetch(address, { headers: { ...headers, accept: "text/event-stream" }, signal });
    if (response.status !== 200) return refused(response);
    const reader = response.body!.getReader();
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return lost("the stream ended");
      onalive();
      read(decoder.decode(value, { stream: true }));
    }
  })().catch(lost);

  return {
    send(body) {
      const { type, token } = JSON.parse(body);
      if (type === "auth") headers.authorization = `Bearer ${token}`;
      up = up
        .then(() => fetch(at(`/${session}`), { method: "POST", headers: { ...headers, "content-type": "application/json" }, body, signal: AbortSignal.timeout(POST_DEADLINE_MS) }))
        .then((response) => (response.ok ? undefined : refused(response)))
        .catch(lost);
    },
    // What was sent before is for a session that is still there.
    close: () => void up.finally(() => stop.abort()),
  };
}
