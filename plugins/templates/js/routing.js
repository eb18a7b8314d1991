// Tells a customer that an order was shipped.

let settings = { text: "Your order is on its way." };

export const plugin = {
  describe() {
    return { name: "template", version: "0.1.0", events: ["order.shipped"] };
  },

  // What is thrown refuses the plugin when it is loaded.
  configure(json) {
    const given = JSON.parse(json);
    for (const name of Object.keys(given)) {
      if (!(name in settings)) throw `unknown setting \`${name}\``;
    }
    settings = { ...settings, ...given };
  },
};

export const routing = {
  route(event) {
    const data = event.data?.tag === "json" ? JSON.parse(event.data.val) : {};
    const message = { type: "order_shipped", order_id: required(data, "order_id"), text: settings.text };
    const user = String(required(data, "user_id"));
    return { joins: [], deliveries: [tell({ tag: "user", val: user }, message)], leaves: [], ends: [] };
  },
};

// A refusal is thrown too: the producer finds it in the receipt.
function required(data, name) {
  if (data[name] === undefined) throw { code: "missing_field", detail: `\`${name}\` is missing` };
  return data[name];
}

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
