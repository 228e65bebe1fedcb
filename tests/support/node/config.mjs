// Uses every method for MCP servers and skills of the published SDK; prints the results as one line of JSON.
import { pathToFileURL } from "node:url";

const [modules, baseUrl, directory] = process.argv.slice(2);
const { SandboxAgent } = await import(pathToFileURL(`${modules}/sandbox-agent/dist/index.js`).href);

const sdk = await SandboxAgent.connect({ baseUrl });
const results = [];

async function add(name, call) {
  let result;
  try {
    result = (await call()) ?? null;
  } catch (error) {
    result = { failed: error.status ?? String(error) };
  }
  results.push([name, result]);
}

const mcp = (mcpName) => ({ directory, mcpName });
const skills = (skillName) => ({ directory, skillName });
const local = { type: "local", command: "server", args: ["-v"], env: { A: "b" }, enabled: false, timeoutMs: 5 };
const remote = { type: "remote", url: "http://127.0.0.1/mcp", transport: "sse", headers: { x: "y" }, oauth: false };
const sources = [{ type: "github", source: "o/r", skills: ["a"], ref: "main", subpath: "s" }];

await add("missing", () => sdk.getMcpConfig(mcp("a")));
await add("set local", () => sdk.setMcpConfig(mcp("a"), local));
await add("set remote", () => sdk.setMcpConfig(mcp("b"), remote));
await add("set list", () => sdk.setMcpConfig(mcp("c"), { type: "local", command: ["a", "b"] }));
await add("set other names", () => sdk.setMcpConfig(mcp("d"), { type: "stdio", command: "x" }));
await add("get local", () => sdk.getMcpConfig(mcp("a")));
await add("get remote", () => sdk.getMcpConfig(mcp("b")));
await add("get list", () => sdk.getMcpConfig(mcp("c")));
await add("get other names", () => sdk.getMcpConfig(mcp("d")));
await add("invalid", () => sdk.setMcpConfig(mcp("e"), { type: "remote" }));
await add("no name", () => sdk.setMcpConfig(mcp(""), local));
await add("delete", () => sdk.deleteMcpConfig(mcp("a")));
await add("delete again", () => sdk.deleteMcpConfig(mcp("a")));
await add("missing skills", () => sdk.getSkillsConfig(skills("s")));
await add("set skills", () => sdk.setSkillsConfig(skills("s"), { sources }));
await add("get skills", () => sdk.getSkillsConfig(skills("s")));
await add("set no skills", () => sdk.setSkillsConfig(skills("t"), { sources: [] }));
await add("get no skills", () => sdk.getSkillsConfig(skills("t")));
await add("delete skills", () => sdk.deleteSkillsConfig(skills("s")));
await sdk.dispose();
console.log(JSON.stringify(results));
