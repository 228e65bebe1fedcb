// A long turn through the published TypeScript SDK with its SQLite driver: prints {seconds, stored}.
//   node ts_turn.mjs NODE_MODULES NODE_MODULES_OF_BETTER_SQLITE BASE_URL AGENT DATABASE EVENTS SIZE
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

import { SQLiteDriver } from "../tests/support/node/sqlite_driver.mjs";

const [modules, sqliteModules, baseUrl, agent, database, events, size] = process.argv.slice(2);
const require = createRequire(path.join(sqliteModules, "from-here.cjs"));
const { SandboxAgent } = await import(pathToFileURL(path.join(modules, "sandbox-agent/dist/index.js")).href);
const persist = new SQLiteDriver(require("better-sqlite3"), database);
persist.db.pragma("synchronous = FULL"); // SQLite's default, which the driver leaves as it is
const sdk = await SandboxAgent.connect({ baseUrl, persist });
const session = await sdk.createSession({ agent, cwd: "/tmp" });
const count = () =>
  persist.db.prepare("SELECT COUNT(*) AS n FROM events WHERE payload_json LIKE '%agent_message_chunk%'").get().n;
const begun = performance.now();
await session.prompt([{ type: "text", text: `burst ${events} ${size}` }]);
// it stores after prompt() has returned: wait until no more comes
let stored = count();
let settled = performance.now();
for (;;) {
  await new Promise((resolve) => setTimeout(resolve, 500));
  const now = count();
  if (now === stored) break;
  stored = now;
  settled = performance.now();
}
process.stdout.write(JSON.stringify({ seconds: (settled - begun) / 1000, stored }) + "\n");
process.exit(0);
