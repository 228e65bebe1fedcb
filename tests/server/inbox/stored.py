"""A store in memory with a session in it, and agents' requests that wait."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec

from sandbox_agent.engine.project import Projector
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.persist.store import Changes, EnvelopeRow, EventRow, PermissionRow, SessionRow
from sandbox_agent.server.streams.viewers import Signal
from sandbox_agent.wire.sessions import CreateSessionRequest
from sandbox_agent.wire.universal import PermissionEventData, QuestionEventData, encode_event

__all__ = ["OPTIONS", "Answered", "Live", "ask", "question", "session_row", "store_in_memory"]

OPTIONS = [
    {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
    {"optionId": "ever", "name": "Ever", "kind": "allow_always"},
    {"optionId": "no", "name": "No", "kind": "reject_once"},
]


@asynccontextmanager
async def store_in_memory() -> AsyncGenerator[SQLiteSessionStore]:
    thread = SQLiteThread(":memory:")
    store = SQLiteSessionStore(thread, thread)
    await store.open()
    try:
        yield store
    finally:
        await thread.close()


def session_row(**settings: Any) -> SessionRow:
    """Return a session that was made with those settings."""
    made = CreateSessionRequest(agent="mock", **settings)
    return SessionRow(
        key=1,
        session_id="s",
        agent="mock",
        created_at=1,
        updated_at=1,
        managed=True,
        directory="/work",
        permission_mode=made.permission_mode or "",
        settings=msgspec.json.encode(made),
    )


class Live:
    """What a listener needs of a RecordedSession."""

    def __init__(self, row: SessionRow) -> None:
        self.row = row
        self.signal = Signal()


class Answered:
    """Takes answers as Sessions does: the first one wins, and the store knows it."""

    def __init__(self, store: SQLiteSessionStore) -> None:
        self._store = store
        self.results: list[tuple[str, dict[str, Any], str]] = []

    async def answer(self, session_id: str, permission_id: str, result: dict[str, Any], by: str) -> bool:
        row = await self._store.permission(1, permission_id)
        assert row is not None
        if row.answered is not None or any(known == permission_id for known, _, _ in self.results):
            return False
        self.results.append((permission_id, result, by))
        row.answered, row.answered_by, row.answered_at = "accept", by or None, 5
        await self._store.commit(Changes(permissions=[row]))
        return True


async def _ask(
    store: SQLiteSessionStore,
    row: SessionRow,
    method: str,
    params: dict[str, Any],
    kind: Literal["permission", "question"],
    expires_at: int | None,
) -> PermissionRow:
    envelope = json.dumps(
        {"jsonrpc": "2.0", "id": row.last_envelope, "method": method, "params": params}
    ).encode()
    row.last_envelope += 1
    projector = Projector(row.session_id, first_sequence=row.last_sequence + 1)
    events = projector.feed("agent", envelope, 1000)
    row.last_sequence = events[-1].sequence
    data = events[-1].data
    assert isinstance(data, PermissionEventData | QuestionEventData)
    asked = PermissionRow(
        key=row.key,
        permission_id=data.permission_id if isinstance(data, PermissionEventData) else data.question_id,
        kind=kind,
        request_id=b"0",
        connection_id="c",
        sequence=row.last_sequence,
        action=data.action if isinstance(data, PermissionEventData) else data.prompt,
        metadata=msgspec.json.encode(data),
        requested_at=1000,
        expires_at=expires_at,
    )
    await store.commit(
        Changes(
            sessions=[row],
            envelopes=[EnvelopeRow(row.key, row.last_envelope, 1000, "agent", "c", envelope)],
            events=[
                EventRow(row.key, event.sequence, 1000, event.type, row.last_envelope, encode_event(event))
                for event in events
            ],
            permissions=[asked],
        )
    )
    return asked


async def ask(
    store: SQLiteSessionStore,
    row: SessionRow,
    tool_call: dict[str, Any] | None = None,
    *,
    options: list[dict[str, str]] | None = None,
    expires_at: int | None = None,
) -> PermissionRow:
    """Store a permission request."""
    call = {"toolCallId": "t", "title": "Write", "kind": "edit", **(tool_call or {})}
    params = {"sessionId": "n", "toolCall": call, "options": OPTIONS if options is None else options}
    return await _ask(store, row, "session/request_permission", params, "permission", expires_at)


async def question(
    store: SQLiteSessionStore, row: SessionRow, method: str, params: dict[str, Any]
) -> PermissionRow:
    """Store a question."""
    return await _ask(store, row, method, {"sessionId": "n", **params}, "question", None)
