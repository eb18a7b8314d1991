// npm's ws as people begin with it, at the addresses that `signalpost-load` uses: sockets, direct messages, and the pooling events.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const base = "/api/pool";
const users = new Map();
const pools = new Map();

function send(user, text) {
  for (const socket of users.get(user) ?? []) socket.send(text);
}

function publish({ type, data }) {
  const text = JSON.stringify(data);
  let readers;
  if (type === "pooling.match.found") {
    readers = new Set([data.rider_id, data.driver_id]);
    const members = pools.get(data.pool_id) ?? new Set();
    for (const user of readers) members.add(user);
    pools.set(data.pool_id, members);
  } else {
    readers = pools.get(data.pool_id) ?? new Set();
    if (type === "pooling.match.cancelled") pools.delete(data.pool_id);
  }
  for (const user of readers) send(user, text);
  return readers.size;
}

const server = createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const body = Buffer.concat(parts).toString();
    const told = request.url.match(/\/users\/([^/]+)\/messages$/);
    let posted = 1;
    if (told) {
      send(told[1], body);
    } else {
      const events = JSON.parse(body);
      posted = (Array.isArray(events) ? events : [events]).reduce((sum, event) => sum + publish(event), 0);
    }
    const receipt = JSON.stringify({ posted });
    response.writeHead(202, { "content-type": "application/json", "content-length": receipt.length });
    response.end(receipt);
  });
});

const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (socket, request) => {
  const user = request.url.slice(`${base}/ws/`.length);
  const own = users.get(user) ?? new Set();
  users.set(user, own.add(socket));
  socket.on("close", () => {
    own.delete(socket);
    if (own.size === 0) users.delete(user);
  });
  socket.on("error", () => {});
});

const [host, port] = process.argv[2].split(":");
server.listen({ host, port: Number(port), backlog: 4096 });
