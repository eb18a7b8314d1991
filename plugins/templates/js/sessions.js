// Greets clients, and answers a `ping` with a `pong`.

export const plugin = {
  describe() {
    return { name: "template", version: "0.1.0", events: [] };
  },

  // What is thrown refuses the plugin when it is loaded.
  configure(json) {
    const [unknown] = Object.keys(JSON.parse(json));
    if (unknown) throw `unknown setting \`${unknown}\``;
  },
};

export const sessions = {
  opened(session) {
    return reply({ type: "welcome", user: session.user });
  },

  // `null`: what is no ping is left to other policies.
  received(session, message) {
    const isPing = message.tag === "json" && JSON.parse(message.val)?.type === "ping";
    return isPing ? reply({ type: "pong" }) : null;
  },

  closed(session, code) {
    return reply();
  },
};

function reply(...messages) {
  return {
    replies: messages.map((message) => ({ tag: "json", val: JSON.stringify(message) })),
    decision: { joins: [], deliveries: [], leaves: [], ends: [] },
    events: [],
    close: null,
  };
}
