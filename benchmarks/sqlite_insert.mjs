// Seed 002's driver in the TypeScript SDK under npm's better-sqlite3, one event a call; the answer is one line of JSON.
import { createRequire } from "node:module";
import path from "node:path";

const [modules, file, count, size] = process.argv.slice(2);
const Database = createRequire(path.join(modules, "package.json"))("better-sqlite3");
const db = new Database(file);
db.exec(`CREATE TABLE IF NOT EXISTS events (
  id TEXT PRIMARY KEY, event_index INTEGER NOT NULL, session_id TEXT NOT NULL, created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json TEXT NOT NULL);
  CREATE INDEX IF NOT EXISTS idx_events_session_order ON events(session_id, event_index, id)`);
const head = { sessionUpdate: "agent_message_chunk", content: { type: "text", text: "x".repeat(Number(size) - 140) } };
const payload = { jsonrpc: "2.0", method: "session/update", params: { sessionId: "s", update: head } };
const begun = performance.now();
for (let index = 1; index <= Number(count); index++) {
  // Prepared anew for each event, as that driver does.
  db.prepare(
    `INSERT INTO events (id, event_index, session_id, created_at, connection_id, sender, payload_json)
     VALUES (?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT(id) DO UPDATE SET
       event_index = excluded.event_index, session_id = excluded.session_id, created_at = excluded.created_at,
       connection_id = excluded.connection_id, sender = excluded.sender, payload_json = excluded.payload_json`,
  ).run(`e-${index}`, index, "s", index, "connection", "agent", JSON.stringify(payload));
}
const seconds = (performance.now() - begun) / 1000;
db.close();
console.log(JSON.stringify({ seconds }));
