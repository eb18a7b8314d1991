// [routing]
// Tells a customer that an order was shipped.
// [formatting]
// Gives readers who ask for `format=text` the text of a message, without the JSON around it.
// [sessions]
// Greets clients, and answers a `ping` with a `pong`.
// [end]

import {
  id, // [routing]
  members, // [routing]
  parse, // [formatting, sessions]
  reporting,
} from "./kit.js";

// Settings, which the server's configuration may change.
let settings = {
  text: "Your order is on its way.", // [routing]
};

export const plugin = reporting({
  describe() {
    return { name: "template", version: "0.1.0", events: ["order.shipped", "signalpost.direct"] };
  },

  // A text that is thrown refuses the plugin when it is loaded.
  configure(json) {
    const given = JSON.parse(json);
    for (const [name, value] of Object.entries(given)) {
      if (!Object.hasOwn(settings, name)) throw `unknown setting \`${name}\``;
      if (typeof value !== "string") throw `\`${name}\` should be a string`;
    }
    settings = { ...settings, ...given };
  },
});

// [routing]
export const routing = reporting({
  route(event) {
    const data = members(event.data);
    const user = id(data, "user_id");
    id(data, "order_id");
    const message = { type: "order_shipped", order_id: data.order_id, text: settings.text, total: data.total ?? undefined };
    return { joins: [], deliveries: [tell({ tag: "user", val: user }, message)], leaves: [], ends: [] };
  },
});

function tell(to, message) {
  return {
    to,
    except: [],
    message: { tag: "json", val: JSON.stringify(message) },
    ttlMs: null,
    keepMs: null,
    collapseKey: null,
    priority: "normal",
  };
}

// [formatting]
export const formatting = reporting({
  vary() {
    return ["format"];
  },

  // `null` would drop the message for these readers.
  format(message, reader) {
    const { format } = Object.fromEntries(reader);
    const text = format === "text" ? parse(message.body)?.text : undefined;
    return typeof text === "string" && text.isWellFormed() ? { tag: "text", val: text } : message.body;
  },
});

// [sessions]
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
// [end]
