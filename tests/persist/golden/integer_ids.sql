-- Events whose id is an integer, some of them without an index.
CREATE TABLE sessions (
  id TEXT PRIMARY KEY, agent TEXT NOT NULL, agent_session_id TEXT NOT NULL, last_connection_id TEXT NOT NULL,
  created_at INTEGER NOT NULL, destroyed_at INTEGER, session_init_json TEXT
);
INSERT INTO sessions VALUES ('old', 'codex', 'agent-9', 'c-9', 1740000000000, NULL, NULL);
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT, event_index INTEGER, session_id TEXT NOT NULL,
  created_at INTEGER NOT NULL, connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json TEXT NOT NULL
);
CREATE INDEX idx_events_session_order ON events(session_id, event_index, id);
INSERT INTO events VALUES (8, NULL, 'old', 1740000000100, 'c-9', 'client', '{"n":1}');
INSERT INTO events VALUES (9, NULL, 'old', 1740000000100, 'c-9', 'agent', '{"n":2}');
INSERT INTO events VALUES (10, 3, 'old', 1740000000100, 'c-9', 'agent', '{"n":3}');
INSERT INTO events VALUES (11, 4, 'old', 1740000000101, 'c-9', 'agent', '{"n":4}');
INSERT INTO events VALUES (7, NULL, 'other', 1740000000050, 'c-8', 'agent', '{"n":1}');
