import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { build } from "esbuild";
import { publint } from "publint";

const root = new URL("..", import.meta.url).pathname;

async function bytes(...entries) {
  const contents = entries.map((entry) => `export * from "./dist/${entry}.js";`).join("");
  const stdin = { contents, resolveDir: root };
  const { outputFiles } = await build({ stdin, bundle: true, minify: true, format: "esm", target: "es2022", write: false });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

test("the client is at most 4 KB minified and gzipped, with server-sent events", async () => {
  const sizes = { client: await bytes("index"), withSse: await bytes("index", "sse") };
  assert.ok(sizes.client > 2000 && sizes.withSse > sizes.client && sizes.withSse <= 4096, JSON.stringify(sizes));
});

test("the package needs nothing at run time, and its exports are there", async () => {
  const manifest = JSON.parse(readFileSync(`${root}/package.json`, "utf8"));
  assert.equal(manifest.dependencies, undefined);
  const { messages } = await publint({ pkgDir: root, strict: true });
  assert.deepEqual(messages, []);
});

test("a browser can load dist as it is: all imports are relative files", () => {
  let imports = 0;
  for (const name of readdirSync(`${root}/dist`).filter((name) => name.endsWith(".js"))) {
    for (const [, from] of readFileSync(`${root}/dist/${name}`, "utf8").matchAll(/^(?:import|export) .*from "(.*)";$/gm)) {
      imports++;
      assert.match(from, /^\.\/[a-z]+\.js$/, name);
    }
  }
  assert.ok(imports > 5, "the imports are no longer where this test looks");
});
