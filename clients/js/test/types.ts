// Compiled, and not run: what the types allow, and what they don't.

import { Signalpost, SignalpostError } from "../dist/index.js";
import type { Message, State } from "../dist/index.js";
import { sse } from "../dist/sse.js";

type In = { type: "match"; id: number } | { type: "surge" };
type Out = { type: "chat"; text: string };

const client = new Signalpost<In, Out>("wss://example.com/api/pool", {
  user: "1001",
  attributes: { locale: "de" },
  token: async ({ reason }) => (reason === "refused" ? null : "token"),
  ack: "manual",
  fallback: sse,
});

const off: () => void = client.on("message", async ({ data, seq, ack }: Message<In>) => {
  if (data.type === "match") data.id.toFixed();
  seq.toFixed();
  ack();
});
client.on("gap", ({ epoch, from }) => `${epoch} ${from.toFixed()}`);
client.on("state", (state: State) => {
  if (state.name === "waiting") state.afterMs.toFixed();
  if (state.name === "stopped") state.code.toFixed();
  // @ts-expect-error Only some states have a code.
  state.code;
});
client.on("error", (error: SignalpostError) => error.code);
// @ts-expect-error There is no such event.
client.on("close", () => {});

const sent: Promise<void> = client.send({ type: "chat", text: "hi" });
// @ts-expect-error This is not what the application sends.
client.send({ type: "match" });
// @ts-expect-error A user is needed.
new Signalpost("wss://example.com/api/pool", {});
// @ts-expect-error These are set by the client alone.
client.state.name = "open";

for await (const { data } of client.messages({ signal: AbortSignal.timeout(1) })) data.type;
