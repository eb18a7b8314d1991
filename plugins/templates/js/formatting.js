// Gives readers who ask for `format=text` the text of a message, without the JSON around it.

export const plugin = {
  describe() {
    return { name: "template", version: "0.1.0", events: ["*"] };
  },

  // What is thrown refuses the plugin when it is loaded.
  configure(json) {
    const [unknown] = Object.keys(JSON.parse(json));
    if (unknown) throw `unknown setting \`${unknown}\``;
  },
};

export const formatting = {
  vary() {
    return ["format"];
  },

  // `null` would drop the message for these readers.
  format(message, reader) {
    const { format } = Object.fromEntries(reader);
    if (format !== "text" || message.body.tag !== "json") return message.body;
    const text = JSON.parse(message.body.val)?.text;
    return typeof text === "string" ? { tag: "text", val: text } : message.body;
  },
};
