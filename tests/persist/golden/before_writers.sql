-- A store of schema version 1, of a release that knew neither writers nor an index of texts.
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
INSERT INTO "events" VALUES('00-0',1,'main',1760000000100,'c-1','client','{"jsonrpc":"2.0","id":1,"method":"session/prompt","params":{"sessionId":"agent-1","prompt":[{"type":"text","text":"Grüße \ud800 \u0000, tidy the cellar"}]}}');
INSERT INTO "events" VALUES('00-1',2,'main',1760000000101,'c-1','agent','{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"agent-1","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"Cob"}}}}');
INSERT INTO "events" VALUES('00-2',3,'main',1760000000102,'c-1','agent','{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"agent-1","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"webs gone."}}}}');
INSERT INTO "events" VALUES('00-3',4,'main',1760000000103,'c-1','agent','{ "jsonrpc":"2.0", "id":1, "result":{"stopReason":"end_turn"}}');
INSERT INTO "events" VALUES('01-0',1,'bare',1760000000200,'c-2','agent','{"jsonrpc":"2.0","method":"x"}');
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
INSERT INTO "sessions" VALUES('main','claude','agent-1','c-1',1760000000000,1760000000999,'local/127.0.0.1:2468','{"cwd":"/workspace","mcpServers":[]}','[{"id":"model","currentValue":"sonnet"}]','{"currentModeId":"default","availableModes":[]}');
INSERT INTO "sessions" VALUES('bare','mock','agent-2','c-2',1760000000001,NULL,NULL,NULL,NULL,NULL);
CREATE INDEX idx_events_session_order ON events(session_id, event_index, id);
CREATE UNIQUE INDEX idx_events_session_index ON events(session_id, event_index);
CREATE INDEX idx_sessions_order ON sessions(created_at, id);
COMMIT;
PRAGMA user_version = 1;
