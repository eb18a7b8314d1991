// Greets clients, and answers a `ping` with a `pong`.

import { parse, reporting } from "./kit.js";

export const plugin = reporting({
  describe() {
    return { name: "template", version: "0.1.0", events: [] };
  },

  // A text that is thrown refuses the plugin when it is loaded.
  configure(json) {
    const [unknown] = Object.keys(JSON.parse(json));
    if (unknown) throw `unknown setting \`${unknown}\``;
  },
});

export const sessions = reporting({
  opened(session) {
    return reply({ type: "welcome", user: session.user });
  },

  // `null` leaves a message to other policies.
  received(session, message) {
    return parse(message)?.type === "ping" ? reply({ type: "pong" }) : null;
  },

  closed(session, code) {
    return reply();
  },
});

function reply(...messages) {
  return {
    replies: messages.map((message) => ({ tag: "json", val: JSON.stringify(message) })),
    decision: { joins: [], deliveries: [], leaves: [], ends: [] },
    events: [],
    close: null,
  };
}
