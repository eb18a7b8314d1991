// Tells a rider and a driver that they share a ride, and makes them a group.

import { id, members, prefixed, reporting } from "./kit.js";

export const plugin = reporting({
  describe() {
    return { name: "match", version: "0.1.0", events: ["pooling.match.found"] };
  },

  configure(json) {
    const [unknown] = Object.keys(JSON.parse(json));
    if (unknown) throw `unknown setting \`${unknown}\``;
  },
});

export const routing = reporting({
  route(event) {
    const data = members(event.data);
    id(data, "request_id");
    const both = [id(data, "rider_id"), id(data, "driver_id")];
    const group = prefixed("pool:", id(data, "pool_id"), "pool_id");
    const begin = {
      type: "pooling_match",
      request_id: data.request_id,
      status: "matched",
      details: "You have been matched for a pooling request!",
    };
    // These members come first and win; the rest of the data follows them.
    const message = { ...begin, ...data, ...begin };
    return {
      joins: both.map((user) => ({ group, user })),
      deliveries: [
        {
          to: { tag: "users", val: both },
          except: [],
          message: { tag: "json", val: JSON.stringify(message) },
          ttlMs: null,
          keepMs: null,
          collapseKey: null,
          priority: "high",
        },
      ],
      leaves: [],
      ends: [],
    };
  },
});
