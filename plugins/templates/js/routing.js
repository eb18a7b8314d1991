// Tells a customer that an order was shipped.

import { id, members, reporting } from "./kit.js";

let settings = { text: "Your order is on its way." };

export const plugin = reporting({
  describe() {
    return { name: "template", version: "0.1.0", events: ["order.shipped"] };
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
