// Uses every method for terminals of the published SDK; prints the results as one line of JSON.
import { pathToFileURL } from "node:url";

const [modules, baseUrl, token] = process.argv.slice(2);
const { SandboxAgent } = await import(pathToFileURL(`${modules}/sandbox-agent/dist/index.js`).href);
const { WebSocket } = globalThis; // Node 20 has it with --experimental-websocket

const sdk = await SandboxAgent.connect({ baseUrl, token });
const results = [];

async function add(name, call) {
  let result;
  try {
    result = await call();
  } catch (error) {
    result = { failed: error.status ?? String(error) };
  }
  results.push([name, result]);
}

// A viewer: its output as text, its other events, and a way to wait for either.
function view(id, options = {}) {
  const session = sdk.connectProcessTerminal(id, { WebSocket, ...options });
  const seen = { text: "", events: [], session };
  const waiting = new Set();
  const check = () => {
    for (const wait of waiting) if (wait.test()) (waiting.delete(wait), wait.done(wait.test()));
  };
  const decoder = new TextDecoder();
  session.onData((bytes) => ((seen.text += decoder.decode(bytes, { stream: true })), check()));
  session.onReady((frame) => (seen.events.push(frame), check()));
  session.onExit((frame) => (seen.events.push(frame), check()));
  session.onError((error) => (seen.events.push(error instanceof Error ? { type: "failed" } : error), check()));
  session.onClose(() => (seen.events.push({ type: "closed" }), check()));
  seen.until = (test) =>
    new Promise((done, fail) => {
      waiting.add({ test, done });
      check();
      setTimeout(() => fail(new Error(`timeout: ${JSON.stringify([seen.text, seen.events])}`)), 20000).unref();
    });
  seen.event = (type) => seen.until(() => seen.events.find((event) => event.type === type));
  seen.says = (text) => seen.until(() => seen.text.includes(text));
  return seen;
}

const shell = await sdk.createProcess({ command: "sh", args: ["-i"], tty: true, env: { PS1: "> ", ENV: "" } });
const pipes = await sdk.createProcess({ command: "cat" });
const one = view(shell.id);
const other = view(shell.id);
await add("ready", () => one.event("ready"));
await other.event("ready");
await add("resize", async () => (await sdk.resizeProcessTerminal(shell.id, { cols: 91, rows: 31 })));
await add("size", async () => {
  one.session.sendInput("stty size; echo done-$((1+1))\r");
  await one.says("done-2");
  return /\d+ \d+/.exec(one.text.split("\r\n").find((line) => /^\d+ \d+$/.test(line)) ?? "")?.[0];
});
await add("resize over the socket", async () => {
  one.session.resize({ cols: 55, rows: 22 });
  one.session.sendInput("stty size; echo done-$((1+2))\r");
  await one.says("done-3");
  return one.text.includes("22 55");
});
await add("all viewers", async () => other.says("done-3"));
await add("bytes as input", async () => {
  one.session.sendInput(new TextEncoder().encode("echo \u00e9-$((2+2))\r"));
  return one.says("\u00e9-4");
});
await add("binary frame", async () => {
  one.session.socket.send(new Uint8Array([1, 2, 3]));
  return (await one.event("error")).message;
});
await add("goes on after it", async () => {
  one.session.sendInput("echo on-$((5+5))\r");
  return one.says("on-10");
});
await add("close", async () => {
  other.session.close();
  return other.event("closed");
});
await add("exit", async () => {
  one.session.sendInput("exit 7\r");
  return one.event("exit");
});
await add("closed", async () => {
  await one.session.closed;
  return one.event("closed");
});
await add("late", async () => {
  const late = view(shell.id);
  return [(await late.event("ready")).processId, (await late.event("exit")).exitCode];
});
await add("last screen", async () => {
  const late = view(shell.id);
  await late.event("closed");
  return late.text.includes("on-10");
});
await add("resize of an ended one", () => sdk.resizeProcessTerminal(shell.id, { cols: 1, rows: 1 }));
await add("without a terminal", async () => (await view(pipes.id).event("failed")).type);
await add("resize without a terminal", () => sdk.resizeProcessTerminal(pipes.id, { cols: 1, rows: 1 }));
await add("missing", async () => (await view("proc_99").event("failed")).type);
await add("resize of a missing one", () => sdk.resizeProcessTerminal("proc_99", { cols: 1, rows: 1 }));
await add("wrong token", async () => (await view(shell.id, { accessToken: "wrong" }).event("failed")).type);
await add("killed", async () => {
  const cat = await sdk.createProcess({ command: "cat", tty: true });
  const viewer = view(cat.id);
  await viewer.event("ready");
  await sdk.killProcess(cat.id, { waitMs: 5000 });
  return (await viewer.event("exit")).exitCode;
});
await sdk.killProcess(pipes.id, { waitMs: 5000 });
await sdk.dispose();
console.log(JSON.stringify(results));
process.exit(0);
