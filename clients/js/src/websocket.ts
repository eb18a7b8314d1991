import type { Link, Opening } from "./types.js";

export function websocket({ at, token, position, onframe, onend }: Opening, Socket: new (url: string, protocols: string[]) => WebSocket): Link {
  const socket = new Socket(at("ws").href.replace("http", "ws"), ["signalpost.v1"]);
  socket.onopen = () => {
    // In one write: a token costs no round trip, and the server need not wait for the resume.
    if (token) socket.send(JSON.stringify({ type: "auth", token }));
    socket.send(JSON.stringify({ type: "resume", ...position }));
  };
  socket.onmessage = ({ data }) => onframe(data);
  // Its end follows. In Node, an error without a listener would end the process.
  socket.onerror = () => {};
  socket.onclose = ({ code, reason }) => onend(code, reason);
  return {
    send: (frame) => socket.send(frame),
    close: () => socket.close(1000),
  };
}
