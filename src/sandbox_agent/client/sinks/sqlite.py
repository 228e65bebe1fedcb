"""A sink that mirrors sessions into an SQLite file: the table agent_events."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec

from sandbox_agent.client.sinks import ClosableSink, gap_error, other_event_error
from sandbox_agent.persist.sql.work import Insert, Query, Table, Work, columns
from sandbox_agent.persist.sqlite.dialect import SQLiteDatabase
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.wire.universal import UniversalEvent

__all__ = ["SQLiteSink"]

# SQLite has no types for times, booleans and JSON: they are text, 0 or 1, and text.
_CREATE: Final = (
    """
CREATE TABLE IF NOT EXISTS agent_events (
  event_id TEXT PRIMARY KEY,
  session_id TEXT NOT NULL,
  native_session_id TEXT,
  sequence INTEGER NOT NULL,
  time TEXT NOT NULL,
  type TEXT NOT NULL,
  source TEXT NOT NULL,
  synthetic BOOLEAN NOT NULL DEFAULT FALSE,
  data TEXT NOT NULL,
  UNIQUE(session_id, sequence)
)""",
    "CREATE INDEX IF NOT EXISTS idx_events_session ON agent_events(session_id, sequence)",
)
_EVENTS: Final = Table(
    "agent_events",
    columns(
        "event_id text, session_id text, native_session_id text?, sequence integer, time text, type text, "
        "source text, synthetic boolean, data text"
    ),
)
_LAST: Final = "SELECT coalesce(max(sequence), 0) FROM agent_events WHERE session_id = $1"
_SAME: Final = """
SELECT 1 FROM agent_events
WHERE session_id = $1 AND sequence = $2 AND event_id = $3 AND time = $4 AND type = $5
"""

_encoder = msgspec.json.Encoder()


class SQLiteSink(ClosableSink):
    """Stores mirrored events in the table ``agent_events`` of an SQLite file.

    Acknowledged events are on the disk. Events that are already stored are skipped, so two mirrors of one
    session are safe.

    Args:
        path: the file; it and its parent directories are created if missing.
        allow_gaps: also store events after a gap (the server no longer has the missing ones).
    """

    def __init__(self, path: str | os.PathLike[str], *, allow_gaps: bool = False) -> None:
        thread = SQLiteThread(path, prepare=_prepare)
        self._database = SQLiteDatabase(thread, thread)
        self._allow_gaps = allow_gaps

    @property
    def path(self) -> str:
        """The file."""
        return self._database.writer.path

    async def last_sequence(self, session_id: str, /) -> int:
        return await self._database.read(partial(_last, session_id))

    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        rows = [_to_row(session_id, event) for event in events]
        await self._database.write(partial(_insert, session_id, rows, self._allow_gaps))

    async def close(self) -> None:
        await self._database.close()


_Row = tuple[str, str, str | None, int, str, str, str, int, str]


def _prepare(connection: sqlite3.Connection) -> None:
    for statement in _CREATE:
        connection.execute(statement).close()


def _last(session_id: str) -> Work[int]:
    return (yield Query(_LAST, (session_id,)))[0][0]


def _insert(session_id: str, rows: Sequence[_Row], allow_gaps: bool) -> Work[None]:
    last = yield from _last(session_id)
    new: list[_Row] = []
    for row in rows:
        event_id, _, _, sequence, time, kind, *_ = row
        if sequence <= last:
            if not (yield Query(_SAME, (session_id, sequence, event_id, time, kind))):
                raise other_event_error(session_id, sequence, "file")
        elif sequence > last + 1 and not allow_gaps:
            raise gap_error(session_id, sequence, last + 1)
        else:
            new.append(row)
            last = sequence
    yield Insert(_EVENTS, new)


def _to_row(session_id: str, event: UniversalEvent) -> _Row:
    return (
        event.event_id,
        session_id,
        event.native_session_id,
        event.sequence,
        event.time,
        event.type,
        event.source,
        int(event.synthetic),
        _json(event.data),
    )


def _json(data: Any) -> str:
    try:
        return _encoder.encode(data).decode()
    except (UnicodeEncodeError, OverflowError):
        # Lone surrogates and huge numbers, in JSON's notation.
        return json.dumps(msgspec.to_builtins(data), separators=(",", ":"))
