// README's page, in Chromium, with a real server, whose path is in SIGNALPOST.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";

import { Chromium } from "./chromium.js";
import { Server, until } from "./signalpost.js";

const file = (path) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");

test("README's page shows its user's messages", async () => {
  const page = file("README.md").match(/```html\n(.*?)```/s)[1];
  const lines = page.trim().split("\n").length;
  assert.ok(lines <= 5, `${lines} lines`);
  let server;
  const http = createServer((request, response) => {
    const isPage = request.url === "/";
    response.setHeader("content-type", isPage ? "text/html" : "text/javascript");
    if (request.url === "/favicon.ico") return response.writeHead(404).end();
    response.end(isPage ? page.replace("127.0.0.1:8080", `127.0.0.1:${server.port}`) : file(request.url.replace("/signalpost-client/", "")));
  }).listen(0, "127.0.0.1");
  await once(http, "listening");
  const address = `http://127.0.0.1:${http.address().port}`;
  server = await Server.start(process.env.SIGNALPOST, `[auth]\norigins = ["${address}"]`);
  const browser = await Chromium.start(`${address}/`);
  try {
    await server.tell("1001", { type: "hello" });
    await until("the message is shown", () => browser.run(`document.body?.textContent.includes('{"type":"hello"}')`));
  } finally {
    await browser.dispose();
    await server.dispose();
    http.closeAllConnections();
    http.close();
  }
});
