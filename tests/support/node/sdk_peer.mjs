// The published TypeScript SDK, driven from outside: a command per line on stdin, and on stdout an answer per
// command and a line for every event and permission request that the SDK's listeners are called with.
//
//   node sdk_peer.mjs NODE_MODULES [NODE_MODULES_OF_BETTER_SQLITE]
//   {"id": 1, "op": "connect", "args": {"baseUrl": "http://127.0.0.1:2468", "file": "s.db"}}
//   {"id": 1, "result": null}   or   {"id": 1, "error": {"name", "message"}}
//   {"event": {...}}, {"permission": {...}}

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";
import readline from "node:readline";

import { SQLiteDriver } from "./sqlite_driver.mjs";

const [modules, sqliteModules] = process.argv.slice(2);
const openSqlite = (file) =>
  new SQLiteDriver(createRequire(path.join(sqliteModules, "from-here.cjs"))("better-sqlite3"), file);
const entry = path.join(modules, "sandbox-agent", "dist", "index.js");
const { InMemorySessionPersistDriver, SandboxAgent } = await import(pathToFileURL(entry).href);

let persist = null;
let sdk = null;
const listening = new Set();

const tell = (message) => process.stdout.write(JSON.stringify(message) + "\n");

function listen(session) {
  if (!listening.has(session.id)) {
    listening.add(session.id);
    session.onEvent((event) => tell({ event }));
    session.onPermissionRequest((permission) => tell({ permission }));
  }
  return session.toRecord();
}

const withSession = (work) => async ({ sessionId, ...args }) => {
  const session = await sdk.getSession(sessionId);
  if (!session) {
    throw new Error(`no session ${sessionId}`);
  }
  return work(session, args);
};

const operations = {
  async connect({ baseUrl, token, file }) {
    persist ??= file ? openSqlite(file) : new InMemorySessionPersistDriver();
    sdk = await SandboxAgent.connect({ baseUrl, token, persist });
    listening.clear();
    return sdk.getHealth();
  },
  createSession: async (request) => listen(await sdk.createSession(request)),
  resumeSession: async ({ sessionId }) => listen(await sdk.resumeSession(sessionId)),
  getSession: async ({ sessionId }) => (await sdk.getSession(sessionId))?.toRecord() ?? null,
  listSessions: async (request) => {
    const page = await sdk.listSessions(request);
    return { ...page, items: page.items.map((session) => session.toRecord()) };
  },
  getEvents: (request) => sdk.getEvents(request),
  destroySession: async ({ sessionId }) => (await sdk.destroySession(sessionId)).toRecord(),
  prompt: withSession((session, { text }) => session.prompt([{ type: "text", text }])),
  setMode: withSession((session, { value }) => session.setMode(value)),
  setModel: withSession((session, { value }) => session.setModel(value)),
  setThoughtLevel: withSession((session, { value }) => session.setThoughtLevel(value)),
  setConfigOption: withSession((session, { configId, value }) => session.setConfigOption(configId, value)),
  getConfigOptions: withSession((session) => session.getConfigOptions()),
  getModes: withSession((session) => session.getModes()),
  respondPermission: ({ permissionId, reply }) => sdk.respondPermission(permissionId, reply),
  listAgents: (options) => sdk.listAgents(options),
  getAgent: ({ agent, ...options }) => sdk.getAgent(agent, options),
  listAcpServers: () => sdk.listAcpServers(),
  dispose: () => sdk.dispose(),
  close: async () => persist.close?.(),
};

async function run({ id, op, args }) {
  try {
    const result = await operations[op](args ?? {});
    tell({ id, result: result ?? null });
  } catch (error) {
    const { name, message, status, code } = error;
    tell({ id, error: { name, message, status, code } });
  }
}

process.on("unhandledRejection", (error) => console.error("unhandled rejection:", error));
// Commands run side by side: a prompt waits for its permission to be answered.
for await (const line of readline.createInterface({ input: process.stdin })) {
  void run(JSON.parse(line));
}
process.exit(0);
