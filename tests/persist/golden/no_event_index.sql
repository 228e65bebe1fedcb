-- Events before event_index: their order is that of creation, then of the integer id.
CREATE TABLE sessions (
  id TEXT PRIMARY KEY, agent TEXT NOT NULL, agent_session_id TEXT NOT NULL, last_connection_id TEXT NOT NULL,
  created_at INTEGER NOT NULL, destroyed_at INTEGER, session_init_json TEXT
);
INSERT INTO sessions VALUES ('old', 'codex', 'agent-9', 'c-9', 1740000000000, NULL, NULL);
CREATE TABLE events (
  id INTEGER PRIMARY KEY, session_id TEXT NOT NULL, created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json TEXT NOT NULL
);
INSERT INTO events VALUES (9, 'old', 1740000000100, 'c-9', 'client', '{"n":1}');
INSERT INTO events VALUES (10, 'old', 1740000000100, 'c-9', 'agent', '{"n":2}');
INSERT INTO events VALUES (11, 'old', 1740000000200, 'c-9', 'agent', '{"n":4}');
INSERT INTO events VALUES (12, 'old', 1740000000150, 'c-9', 'agent', '{"n":3}');
INSERT INTO events VALUES (13, 'other', 1740000000100, 'c-8', 'agent', '{"n":1}');
