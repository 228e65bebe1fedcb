-- A store of schema version 1.
BEGIN TRANSACTION;
CREATE TABLE events (
  id TEXT PRIMARY KEY,
  event_index INTEGER NOT NULL,
  session_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL,
  sender TEXT NOT NULL,
  payload_json TEXT NOT NULL
);
INSERT INTO "events" VALUES('a',1,'main',1700000000000,'connection-1','agent','{"jsonrpc": "2.0","id":1,"method":"session/prompt","params":{"t":"Grüße 🦀 \ud800 \u0000"}}');
INSERT INTO "events" VALUES('b',2,'main',1700000000000,'connection-1','agent','{"jsonrpc":"2.0","method":"session/update","params":{"event":"b"}}');
CREATE TABLE sessions (
  id TEXT PRIMARY KEY,
  agent TEXT NOT NULL,
  agent_session_id TEXT NOT NULL,
  last_connection_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  destroyed_at INTEGER,
  sandbox_id TEXT,
  session_init_json TEXT,
  config_options_json TEXT,
  modes_json TEXT
);
INSERT INTO "sessions" VALUES('main','mock','agent-main','connection-1',1700000000000,5,'local/x','{"cwd":"/w","mcpServers":[]}','[{"id":"model"}]','{"currentModeId":"ask"}');
INSERT INTO "sessions" VALUES('bare','mock','agent-bare','connection-1',1,NULL,NULL,NULL,NULL,NULL);
CREATE INDEX idx_events_session_order ON events(session_id, event_index, id);
CREATE UNIQUE INDEX idx_events_session_index ON events(session_id, event_index);
CREATE INDEX idx_sessions_order ON sessions(created_at, id);
COMMIT;
PRAGMA user_version = 1;
