// Gives readers who ask for `format=text` the text of a message, without the JSON around it.

import { parse, reporting } from "./kit.js";

export const plugin = reporting({
  describe() {
    return { name: "template", version: "0.1.0", events: ["*"] };
  },

  // A text that is thrown refuses the plugin when it is loaded.
  configure(json) {
    const [unknown] = Object.keys(JSON.parse(json));
    if (unknown) throw `unknown setting \`${unknown}\``;
  },
});

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
