// Has AsyncAPI's own parser read a description. What it finds wrong is an error; that there is a newer version of the specification is not.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const [file] = process.argv.slice(2);
const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"), { source: file });
const found = diagnostics.filter((one) => one.code !== "asyncapi-latest-version");
for (const { code, path, message } of found) console.error(`${file}: ${path.join(".")}: ${message} (${code})`);
if (found.length > 0 || document === undefined) process.exit(1);
console.log(`${file}: OK, ${document.allChannels().length} channels and ${document.allMessages().length} messages`);
