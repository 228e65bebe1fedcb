// Uses every method for files of the published SDK; prints the results as one line of JSON.
import { pathToFileURL } from "node:url";

const [modules, baseUrl, folder, archive] = process.argv.slice(2);
const { SandboxAgent } = await import(pathToFileURL(`${modules}/sandbox-agent/dist/index.js`).href);
const { readFile } = await import("node:fs/promises");

const sdk = await SandboxAgent.connect({ baseUrl });
const results = [];

async function add(name, call) {
  let result;
  try {
    result = await call();
    if (result instanceof Uint8Array) result = new TextDecoder().decode(result);
  } catch (error) {
    result = { failed: error.status ?? String(error) };
  }
  results.push([name, result]);
}

const path = (name) => `${folder}/${name}`;
await add("write", () => sdk.writeFsFile({ path: path("a/b.txt") }, "hello"));
await add("write bytes", () => sdk.writeFsFile({ path: path("a/bytes") }, new Uint8Array([104, 105])));
await add("read", () => sdk.readFsFile({ path: path("a/b.txt") }));
await add("stat", () => sdk.statFs({ path: path("a/b.txt") }));
await add("mkdir", () => sdk.mkdirFs({ path: path("c/d") }));
await add("mkdir again", () => sdk.mkdirFs({ path: path("c/d") }));
await add("list", () => sdk.listFsEntries({ path: folder }));
await add("move", () => sdk.moveFs({ from: path("a/b.txt"), to: path("c/d/b.txt") }));
await add("move over", () => sdk.moveFs({ from: path("a/bytes"), to: path("c/d/b.txt") }));
await add("overwrite", () => sdk.moveFs({ from: path("a/bytes"), to: path("c/d/b.txt"), overwrite: true }));
await add("upload", async () => sdk.uploadFsBatch(await readFile(archive), { path: path("up") }));
await add("read uploaded", () => sdk.readFsFile({ path: path("up/sub/file") }));
await add("missing", () => sdk.readFsFile({ path: path("nope") }));
await add("folder as file", () => sdk.readFsFile({ path: path("c") }));
await add("not empty", () => sdk.deleteFsEntry({ path: path("c") }));
await add("delete", () => sdk.deleteFsEntry({ path: path("c"), recursive: true }));
await add("delete file", () => sdk.deleteFsEntry({ path: path("up/sub/file") }));
await add("list after", () => sdk.listFsEntries({ path: folder }));
await sdk.dispose();
console.log(JSON.stringify(results));
