-- The TypeScript driver died between making the new events table and filling it.
CREATE TABLE sessions (
  id TEXT PRIMARY KEY, agent TEXT NOT NULL, agent_session_id TEXT NOT NULL, last_connection_id TEXT NOT NULL,
  created_at INTEGER NOT NULL, destroyed_at INTEGER, sandbox_id TEXT, session_init_json TEXT,
  config_options_json TEXT, modes_json TEXT
);
INSERT INTO sessions VALUES ('old', 'codex', 'agent-9', 'c-9', 1740000000000, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE events_legacy (
  id INTEGER PRIMARY KEY, session_id TEXT NOT NULL, created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json TEXT NOT NULL
);
INSERT INTO events_legacy VALUES (9, 'old', 1740000000100, 'c-9', 'client', '{"n":1}');
INSERT INTO events_legacy VALUES (10, 'old', 1740000000101, 'c-9', 'agent', '{"n":2}');
CREATE TABLE events (
  id TEXT PRIMARY KEY, event_index INTEGER NOT NULL, session_id TEXT NOT NULL, created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json TEXT NOT NULL
);
CREATE INDEX idx_events_session_order ON events(session_id, event_index, id);
