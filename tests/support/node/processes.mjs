// Uses every method for processes of the published SDK but the terminal's; prints the results as one line of JSON.
import { pathToFileURL } from "node:url";

const [modules, baseUrl, folder] = process.argv.slice(2);
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
  return result;
}

const sh = (script, members = {}) => ({ command: "sh", args: ["-c", script], cwd: folder, ...members });
const text = (entries) => Buffer.concat(entries.map((entry) => Buffer.from(entry.data, "base64"))).toString();

// Follows a log until it has a text; returns the entries.
async function follow(id, end, query = {}) {
  const entries = [];
  let found;
  const done = new Promise((resolve) => (found = resolve));
  const subscription = await sdk.followProcessLogs(
    id,
    (entry) => {
      entries.push(entry);
      if (text(entries).includes(end)) found();
    },
    query,
  );
  await done;
  // `closed` never settles if the stream of a process that has ended is closed at the same moment.
  subscription.close();
  return entries;
}

// Returns a process when it has ended.
async function ended(id) {
  for (;;) {
    const found = await sdk.getProcess(id);
    if (found.status === "exited") return found;
  }
}

const config = await add("config", () => sdk.getProcessConfig());
await add("list", () => sdk.listProcesses());
const first = await add("create", () =>
  sdk.createProcess(sh("echo $COLOR; read line; echo \"$line\"; echo end >&2; exit 3", { env: { COLOR: "red" }, interactive: true })),
);
await add("follow", async () => text(await follow(first.id, "red\n", { stream: "stdout" })));
await add("delete running", () => sdk.deleteProcess(first.id));
await add("input", () => sdk.sendProcessInput(first.id, { data: Buffer.from("hö\n").toString("base64") }));
await add("follow since", async () => text(await follow(first.id, "hö\n", { stream: "stdout", since: 1 })));
await add("follow stderr", async () => text(await follow(first.id, "end\n", { stream: "stderr" })));
await add("ended", () => ended(first.id));
await add("logs", async () => text((await sdk.getProcessLogs(first.id, { stream: "stdout" })).entries));
await add("logs members", async () => {
  const logs = await sdk.getProcessLogs(first.id);
  return { ...logs, entries: logs.entries.map((entry) => Object.keys(entry)) };
});
await add("logs tail", async () => (await sdk.getProcessLogs(first.id, { tail: 1 })).entries.length);
await add("logs since", async () => (await sdk.getProcessLogs(first.id, { since: 99 })).entries);
await add("input ended", () => sdk.sendProcessInput(first.id, { data: "eA==" }));
await add("stop ended", () => sdk.stopProcess(first.id));
await add("list ended", () => sdk.listProcesses({ owner: "user" }));
await add("list desktop", () => sdk.listProcesses({ owner: "desktop" }));
await add("delete", () => sdk.deleteProcess(first.id));
await add("get deleted", () => sdk.getProcess(first.id));
const cat = await add("create cat", () => sdk.createProcess({ command: "cat" }));
await add("input text", () => sdk.sendProcessInput(cat.id, { data: "ö\n", encoding: "utf8" }));
await add("follow cat", async () => text(await follow(cat.id, "ö\n")));
await add("input too large", () => sdk.sendProcessInput(cat.id, { data: "x".repeat(70000), encoding: "utf8" }));
await add("input invalid", () => sdk.sendProcessInput(cat.id, { data: "!" }));
await add("resize", () => sdk.resizeProcessTerminal(cat.id, { cols: 80, rows: 24 }));
await add("stop", () => sdk.stopProcess(cat.id, { waitMs: 10000 }));
const sleep = await sdk.createProcess({ command: "sleep", args: ["600"] });
await add("kill", () => sdk.killProcess(sleep.id, { waitMs: 10000 }));
await add("command missing", () => sdk.createProcess({ command: "no-such-command" }));
await add("command empty", () => sdk.createProcess({ command: "" }));
await add("run", () => sdk.runProcess(sh("cat; pwd; echo wrong >&2; exit 3")));
await add("run cut", () => sdk.runProcess(sh("echo 12345", { maxOutputBytes: 3 })));
await add("run late", () => sdk.runProcess({ command: "sleep", args: ["600"], timeoutMs: 100 }));
await add("run missing", () => sdk.runProcess({ command: "no-such-command" }));
await add("config set", () => sdk.setProcessConfig({ ...config, maxConcurrentProcesses: 1, maxRunTimeoutMs: 1000 }));
await add("config zero", () => sdk.setProcessConfig({ ...config, maxLogBytesPerProcess: 0 }));
const last = await sdk.createProcess({ command: "cat" });
await add("too many", () => sdk.createProcess({ command: "cat" }));
await sdk.killProcess(last.id);
await sdk.dispose();
console.log(JSON.stringify(results));
