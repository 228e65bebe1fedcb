"""Stores that are full already: what a server that has run for months would have."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.persist.store import Changes, EventRow, SessionRow, TextRow
from sandbox_agent.wire.universal import (
    ItemDeltaData,
    ItemEventData,
    TextPart,
    UniversalEvent,
    UniversalItem,
    encode_event,
    event_time,
)

__all__ = ["LONG", "WORDS", "fill"]

# The session with the long history.
LONG = "long"
BEGAN = 1_700_000_000_000
BATCH = 1_000
# Words as in a log: few that are everywhere, many that are rare.
COMMON = ("the", "of", "file", "error", "test", "return")
WORDS = tuple(f"word{number:05d}" for number in range(20_000))


def _event(session_id: str, sequence: int, data: ItemDeltaData | ItemEventData) -> bytes:
    kind = "item.delta" if isinstance(data, ItemDeltaData) else "item.completed"
    return encode_event(
        UniversalEvent(
            f"evt_{session_id}_{sequence}",
            sequence,
            event_time(BEGAN + sequence),
            session_id,
            "agent",
            False,
            kind,
            data,
        )
    )


def _long(key: int, events: int) -> Iterator[Changes]:
    yield Changes(sessions=[_session(key, LONG, events)])
    for start in range(1, events + 1, BATCH):
        rows = [
            EventRow(
                key,
                sequence,
                BEGAN + sequence,
                "item.delta",
                0,
                _event(LONG, sequence, ItemDeltaData("itm_1", f"piece {sequence} of the text")),
            )
            for sequence in range(start, min(start + BATCH, events + 1))
        ]
        yield Changes(events=rows)


def _session(key: int, session_id: str, events: int) -> SessionRow:
    return SessionRow(
        key=key,
        session_id=session_id,
        agent="mock",
        created_at=BEGAN + key,
        updated_at=BEGAN + key,
        managed=True,
        last_sequence=events,
    )


def _many(sessions: int, events: int) -> Iterator[Changes]:
    chance = random.Random(1)
    changes = Changes()
    for number in range(1, sessions + 1):
        key, session_id = number + 1, f"session-{number}"
        changes.sessions.append(_session(key, session_id, events))
        for sequence in range(1, events + 1):
            text = " ".join([*chance.choices(COMMON, k=4), *chance.choices(WORDS, k=8)])
            item = UniversalItem(f"itm_{sequence}", "message", [TextPart(text)], "completed")
            data = _event(session_id, sequence, ItemEventData(item))
            time_ms = BEGAN + number * 1_000 + sequence
            changes.events.append(EventRow(key, sequence, time_ms, "item.completed", 0, data))
            changes.texts.append(TextRow(key, sequence, time_ms, text))
        if len(changes.events) >= BATCH:
            yield changes
            changes = Changes()
    yield changes


async def fill(path: Path, *, long: int, sessions: int, events: int) -> None:
    """Make a store: a session of ``long`` events, and ``sessions`` with ``events`` texts each."""
    writer = SQLiteThread(path)
    reader = SQLiteThread(path, read_only=True)
    store = SQLiteSessionStore(writer, reader)
    try:
        await store.open()
        for changes in _long(1, long):
            await store.commit(changes)
        for changes in _many(sessions, events):
            await store.commit(changes)
    finally:
        await reader.close()
        await writer.close()
