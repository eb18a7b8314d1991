/** Reads server-sent events by the rules of the HTML standard. `take` gets each event's type and data; comments are silent. */
export function parser(take: (type: string, data: string) => void): (text: string) => void {
  let rest = "";
  let type = "";
  let data: string[] = [];
  return (text) => {
    // A carriage return at the end may be half of a line break.
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop()!;
    for (const line of lines) {
      if (!line) {
        if (data.length) take(type, data.join("\n"));
        type = "";
        data = [];
      }
      const [, name, value = ""] = /^([^:]*):? ?(.*)$/s.exec(line)!;
      if (name === "event") type = value;
      if (name === "data") data.push(value);
    }
  };
}
