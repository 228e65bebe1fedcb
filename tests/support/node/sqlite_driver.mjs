// The SQLite driver that users of the published TypeScript SDK copy into their projects, rewritten from its
// schema and its behaviour: the same tables, columns, order and paging, and no unique index of its own.

const SESSION_COLUMNS = [
  "id",
  "agent",
  "agent_session_id",
  "last_connection_id",
  "created_at",
  "destroyed_at",
  "sandbox_id",
  "session_init_json",
  "config_options_json",
  "modes_json",
];
const EVENT_COLUMNS = [
  "id",
  "event_index",
  "session_id",
  "created_at",
  "connection_id",
  "sender",
  "payload_json",
];
const DEFAULT_LIMIT = 100;

const toJson = (value) => (value === undefined || value === null ? null : JSON.stringify(value));
const fromJson = (text) => (text ? JSON.parse(text) : undefined);

function upsert(table, columns) {
  const others = columns.filter((column) => column !== "id");
  return `INSERT INTO ${table} (${columns.join(", ")}) VALUES (${columns.map(() => "?").join(", ")})
    ON CONFLICT(id) DO UPDATE SET ${others.map((column) => `${column} = excluded.${column}`).join(", ")}`;
}

export class SQLiteDriver {
  constructor(Database, filename) {
    this.db = new Database(filename);
    // Its process is not killed here, so what it says is stored need not survive a power cut.
    this.db.pragma("synchronous = OFF");
    this.db.exec(`
      CREATE TABLE IF NOT EXISTS sessions (
        id TEXT PRIMARY KEY, agent TEXT NOT NULL, agent_session_id TEXT NOT NULL,
        last_connection_id TEXT NOT NULL, created_at INTEGER NOT NULL, destroyed_at INTEGER,
        sandbox_id TEXT, session_init_json TEXT, config_options_json TEXT, modes_json TEXT
      );
      CREATE TABLE IF NOT EXISTS events (
        id TEXT PRIMARY KEY, event_index INTEGER NOT NULL, session_id TEXT NOT NULL,
        created_at INTEGER NOT NULL, connection_id TEXT NOT NULL, sender TEXT NOT NULL,
        payload_json TEXT NOT NULL
      );
      CREATE INDEX IF NOT EXISTS idx_events_session_order ON events(session_id, event_index, id)
    `);
  }

  async getSession(id) {
    const row = this.db.prepare(`SELECT ${SESSION_COLUMNS.join(", ")} FROM sessions WHERE id = ?`).get(id);
    return row ? toSession(row) : undefined;
  }

  async listSessions(request = {}) {
    return this.page("sessions", SESSION_COLUMNS, "created_at ASC, id ASC", "", [], request, toSession);
  }

  async updateSession(session) {
    this.db
      .prepare(upsert("sessions", SESSION_COLUMNS))
      .run(
        session.id,
        session.agent,
        session.agentSessionId,
        session.lastConnectionId,
        session.createdAt,
        session.destroyedAt ?? null,
        session.sandboxId ?? null,
        session.sessionInit ? JSON.stringify(session.sessionInit) : null,
        session.configOptions ? JSON.stringify(session.configOptions) : null,
        session.modes !== undefined ? JSON.stringify(session.modes) : null,
      );
  }

  async listEvents(request) {
    const where = "WHERE session_id = ?";
    return this.page("events", EVENT_COLUMNS, "event_index ASC, id ASC", where, [request.sessionId], request, toEvent);
  }

  async insertEvent(_sessionId, event) {
    this.db
      .prepare(upsert("events", EVENT_COLUMNS))
      .run(
        event.id,
        event.eventIndex,
        event.sessionId,
        event.createdAt,
        event.connectionId,
        event.sender,
        toJson(event.payload),
      );
  }

  close() {
    this.db.close();
  }

  page(table, columns, order, where, bound, request, decode) {
    const parsed = Number.parseInt(request.cursor ?? "", 10);
    const offset = Number.isFinite(parsed) && parsed >= 0 ? parsed : 0;
    const limit = Number.isFinite(request.limit) && request.limit >= 1 ? Math.floor(request.limit) : DEFAULT_LIMIT;
    const rows = this.db
      .prepare(`SELECT ${columns.join(", ")} FROM ${table} ${where} ORDER BY ${order} LIMIT ? OFFSET ?`)
      .all(...bound, limit, offset);
    const { count } = this.db.prepare(`SELECT COUNT(*) AS count FROM ${table} ${where}`).get(...bound);
    const next = offset + rows.length;
    return { items: rows.map(decode), nextCursor: next < count ? String(next) : undefined };
  }
}

function toSession(row) {
  return {
    id: row.id,
    agent: row.agent,
    agentSessionId: row.agent_session_id,
    lastConnectionId: row.last_connection_id,
    createdAt: row.created_at,
    destroyedAt: row.destroyed_at ?? undefined,
    sandboxId: row.sandbox_id ?? undefined,
    sessionInit: fromJson(row.session_init_json),
    configOptions: fromJson(row.config_options_json),
    modes: fromJson(row.modes_json),
  };
}

function toEvent(row) {
  return {
    id: row.id,
    eventIndex: row.event_index,
    sessionId: row.session_id,
    createdAt: row.created_at,
    connectionId: row.connection_id,
    sender: row.sender,
    payload: JSON.parse(row.payload_json),
  };
}
