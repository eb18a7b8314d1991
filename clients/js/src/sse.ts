import { LOST, POST_DEADLINE_MS, UNAUTHORIZED } from "./bounds.js";
import { parser } from "./parser.js";
import type { Link, Opening } from "./types.js";

/** Connects with server-sent events, and sends each frame with a POST. */
export function sse({ at, token, position, onframe, onend }: Opening): Link {
  const stop = new AbortController();
  const headers: Record<string, string> = { accept: "text/event-stream", "content-type": "application/json" };
  let session = "";
  // One after the other, so that the frames keep their order.
  let up: Promise<unknown> = Promise.resolve();

  const show = (token: unknown): unknown => token && (headers.authorization = `Bearer ${token}`);
  const end = (code: number, reason: string, afterMs?: number): void => {
    stop.abort();
    onend(code, reason, afterMs);
  };
  const lost = (reason: unknown): void => end(LOST, String(reason));
  /** Ends the connection at any answer but a good one. */
  const request = async (address: URL, init: RequestInit): Promise<Response> => {
    const response = await fetch(address, { headers, ...init });
    if (!response.ok) end(response.status === 401 ? UNAUTHORIZED : LOST, `HTTP ${response.status}`);
    return response;
  };
  const read = parser((type, data) => {
    const frame = JSON.parse(data);
    if (type === "close") return end(frame.code, frame.reason, frame.after_ms);
    if (frame.type === "hello") session = frame.data.session;
    onframe(data);
  });

  show(token);
  const address = at("sse");
  if (position) address.searchParams.set("last_event_id", `${position.epoch}.${position.seq}`);
  (async () => {
    const { body } = await request(address, { signal: stop.signal });
    const write = (text: string): void => {
      // A comment is a sign of life too.
      onframe('{"type":"comment"}');
      read(text);
    };
    await body!.pipeThrough(new TextDecoderStream()).pipeTo(new WritableStream({ write }));
    throw "the stream ended";
  })().catch(lost);

  return {
    send(body) {
      show(JSON.parse(body).token);
      up = up.then(() => request(at("sse", `/${session}`), { method: "POST", body, signal: AbortSignal.timeout(POST_DEADLINE_MS) })).catch(lost);
    },
    // What was sent before is for a session that is still there.
    close: () => void up.finally(() => stop.abort()),
  };
}
