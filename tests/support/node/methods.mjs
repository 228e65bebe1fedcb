// Uses the methods of the published SDK that no other script uses; prints the results as one line of JSON.
import { pathToFileURL } from "node:url";

const [modules, baseUrl, agent, cwd] = process.argv.slice(2);
const { SandboxAgent } = await import(pathToFileURL(`${modules}/sandbox-agent/dist/index.js`).href);
const { WebSocket } = globalThis; // Node 20 has it with --experimental-websocket
const results = [];

async function add(name, call) {
  let result;
  try {
    result = (await call()) ?? null;
  } catch (error) {
    result = { failed: error.status ?? error.name };
  }
  results.push([name, result]);
}

// A provider whose sandbox is the server.
const calls = [];
const provider = {
  name: "here",
  create: async () => (calls.push("create"), "box"),
  destroy: async (id) => void calls.push(`destroy ${id}`),
  pause: async (id) => void calls.push(`pause ${id}`),
  kill: async (id) => void calls.push(`kill ${id}`),
  getUrl: async () => baseUrl,
};
const start = () => SandboxAgent.start({ sandbox: provider });
const sdk = await start();
await add("sandbox", () => [sdk.sandboxId, sdk.sandbox === provider, sdk.inspectorUrl.replace(baseUrl, "")]);
await add("install", async () => (await sdk.installAgent(agent)).already_installed);

const session = await sdk.resumeOrCreateSession({ id: "one", agent, cwd });
await add("resume or create", async () => (await sdk.resumeOrCreateSession({ id: "one", agent, cwd })).id);
const options = (list) => list.map((each) => [each.id, each.currentValue]).sort();
await add("modes", () => sdk.getSessionModes("one"));
await add("options", async () => options(await sdk.getSessionConfigOptions("one")));
const modes = await session.getModes();
const choices = Object.fromEntries((await session.getConfigOptions()).map((each) => [each.category, each]));
const values = (category) => choices[category].options.flatMap((each) => each.options ?? [each]).map((each) => each.value);
await add("set mode", async () => (await sdk.setSessionMode("one", modes.availableModes.at(-1).id)).session.id);
await add("no such mode", () => sdk.setSessionMode("one", "none"));
await add("set model", async () => (await sdk.setSessionModel("one", values("model").at(-1))).session.id);
await add("no such model", () => sdk.setSessionModel("one", "none"));
const thought = values("thought_level").at(-1);
await add("set thought", async () => (await sdk.setSessionThoughtLevel("one", thought)).session.id);
const option = choices.model;
await add("set option", async () => {
  const { response } = await sdk.setSessionConfigOption("one", option.id, values("model")[0]);
  return options(response.configOptions);
});
await add("no such option", () => sdk.setSessionConfigOption("one", "none", "x"));

let seen = 0;
const stopEvents = sdk.onSessionEvent("one", () => seen++);
const prompt = (text) => ({ prompt: [{ type: "text", text }] });
await add("raw send", async () => (await session.rawSend("session/prompt", prompt("echo a"))).stopReason);
await add("raw send by id", async () => {
  return (await sdk.rawSendSessionMethod("one", "session/prompt", prompt("echo b"))).response.stopReason;
});
await add("raw send of an unknown method", () => session.rawSend("session/none", {}));
await add("raw notification", () => session.rawSend("session/cancel", {}, { notification: true }));
await add("events", () => seen > 0);
stopEvents();

// The options' ids are the agent's own.
const allow = (request) => ({ outcome: { outcome: "selected", optionId: request.options[0].optionId } });
const answers = [
  ["by reply of the session", (request) => session.respondPermission(request.id, "once")],
  ["by response of the session", (request) => session.rawRespondPermission(request.id, allow(request))],
  ["by response", (request) => sdk.rawRespondPermission(request.id, allow(request))],
];
for (const [name, answer] of answers) {
  const asked = [];
  const stop = sdk.onPermissionRequest("one", (request) => asked.push(answer(request)));
  await add(`permission ${name}`, async () => (await session.prompt(prompt("permission").prompt)).stopReason);
  await Promise.all(asked);
  await add(`asked ${name}`, () => asked.length);
  stop();
}
await add("answer again", () => sdk.rawRespondPermission("none", { outcome: { outcome: "cancelled" } }));
await add("refresh", async () => (await session.refresh()).id);
await add("apply", () => (session.apply({ ...session.toRecord(), lastConnectionId: "other" }), session.lastConnectionId));

const made = await sdk.createProcess({ command: "cat", tty: true });
const url = sdk.buildProcessTerminalWebSocketUrl(made.id, { accessToken: "a b" });
await add("terminal url", () => url.replace(/127.0.0.1:\d+/, "host").replace(made.id, "ID"));
await add("web socket", () =>
  new Promise((resolve, reject) => {
    const socket = sdk.connectProcessTerminalWebSocket(made.id, { WebSocket });
    socket.onerror = () => reject(new Error("it does not open"));
    socket.onmessage = (message) => {
      const { type, processId } = JSON.parse(message.data);
      socket.onclose = () => resolve([type, processId === made.id]);
      socket.close();
    };
  }),
);
await sdk.killProcess(made.id, { waitMs: 5000 });

await sdk.destroySandbox();
await add("after destroy", () => [sdk.sandboxId ?? null, ...calls]);
for (const method of ["pauseSandbox", "killSandbox"]) {
  const other = await start();
  calls.length = 0;
  await other[method]();
  await add(method, () => [...calls]);
}
console.log(JSON.stringify(results));
process.exit(0);
