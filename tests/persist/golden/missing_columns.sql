-- The oldest sessions table: before sandbox_id, config_options_json and modes_json.
CREATE TABLE sessions (
  id TEXT PRIMARY KEY, agent TEXT NOT NULL, agent_session_id TEXT NOT NULL, last_connection_id TEXT NOT NULL,
  created_at INTEGER NOT NULL, destroyed_at INTEGER, session_init_json TEXT
);
INSERT INTO sessions VALUES ('old', 'codex', 'agent-9', 'c-9', 1740000000000, NULL, '{"cwd":"/w","mcpServers":[]}');
INSERT INTO sessions VALUES ('gone', 'codex', 'agent-8', 'c-8', 1740000000000, 1740000000500, NULL);
CREATE TABLE events (
  id TEXT PRIMARY KEY, event_index INTEGER NOT NULL, session_id TEXT NOT NULL, created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json TEXT NOT NULL
);
CREATE INDEX idx_events_session_order ON events(session_id, event_index, id);
INSERT INTO events VALUES ('e-1', 1, 'old', 1740000000100, 'c-9', 'client', '{"jsonrpc":"2.0","id":1,"method":"session/prompt"}');
INSERT INTO events VALUES ('e-2', 2, 'old', 1740000000101, 'c-9', 'agent', '{"jsonrpc":"2.0","id":1,"result":{}}');
