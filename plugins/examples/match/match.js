// Tells a rider and a driver that they share a ride, and makes them a group.

const ID = "an id, which is a whole number or a string that is not empty";

export const plugin = {
  describe() {
    return { name: "match", version: "0.1.0", events: ["pooling.match.found"] };
  },

  configure(json) {
    const [unknown] = Object.keys(JSON.parse(json));
    if (unknown) throw `unknown setting \`${unknown}\``;
  },
};

export const routing = {
  route(event) {
    const data = event.data?.tag === "json" ? JSON.parse(event.data.val) : {};
    id(data, "request_id");
    const both = [id(data, "rider_id"), id(data, "driver_id")];
    const group = `pool:${id(data, "pool_id")}`;
    const message = {
      type: "pooling_match",
      request_id: data.request_id,
      status: "matched",
      details: "You have been matched for a pooling request!",
    };
    for (const [name, value] of Object.entries(data)) {
      if (!(name in message)) message[name] = value;
    }
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
};

function id(data, name) {
  const value = data[name];
  if (value === undefined) throw { code: "missing_field", detail: `\`${name}\` is missing: it should be ${ID}` };
  if (Number.isInteger(value) || (typeof value === "string" && value !== "")) return String(value);
  throw { code: "invalid_field", detail: `\`${name}\` should be ${ID}` };
}
