-- Two clients of the TypeScript driver numbered one session at once; another session is in order.
CREATE TABLE sessions (
  id TEXT PRIMARY KEY, agent TEXT NOT NULL, agent_session_id TEXT NOT NULL, last_connection_id TEXT NOT NULL,
  created_at INTEGER NOT NULL, destroyed_at INTEGER, sandbox_id TEXT, session_init_json TEXT,
  config_options_json TEXT, modes_json TEXT
);
INSERT INTO sessions VALUES ('raced', 'codex', 'agent-9', 'c-9', 1740000000000, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE events (
  id TEXT PRIMARY KEY, event_index INTEGER NOT NULL, session_id TEXT NOT NULL, created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json TEXT NOT NULL
);
CREATE INDEX idx_events_session_order ON events(session_id, event_index, id);
INSERT INTO events VALUES ('z', 1, 'raced', 1740000000100, 'c-9', 'client', '{"n":1}');
INSERT INTO events VALUES ('a', 1, 'raced', 1740000000101, 'c-8', 'client', '{"n":2}');
INSERT INTO events VALUES ('y', 2, 'raced', 1740000000102, 'c-9', 'agent', '{"n":3}');
INSERT INTO events VALUES ('b', 2, 'raced', 1740000000102, 'c-8', 'agent', '{"n":4}');
INSERT INTO events VALUES ('c', 3, 'raced', 1740000000103, 'c-8', 'agent', '{"n":5}');
INSERT INTO events VALUES ('g', 5, 'calm', 1740000000100, 'c-7', 'client', '{"n":1}');
INSERT INTO events VALUES ('h', 9, 'calm', 1740000000099, 'c-7', 'client', '{"n":2}');
