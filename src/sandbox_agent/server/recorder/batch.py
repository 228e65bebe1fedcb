"""The rows that the next commit stores, and what is shown after it."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, NamedTuple

from sandbox_agent.engine.feed import Chunk
from sandbox_agent.engine.sse import encode_messages
from sandbox_agent.persist.store import Changes, SessionRow

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.published_session import LiveSession

__all__ = ["Batch", "News"]


# What one write to a viewer takes at least.
CHUNK_BYTES = 64 * 1024


class News(NamedTuple):
    """What a session's viewers see after the commit."""

    session: LiveSession
    row: SessionRow
    chunks: list[Chunk]


class Batch:
    """Rows that belong into one transaction.

    Attributes:
        changes: the rows.
        size: about how many bytes they are.
        held: bytes of the intake that are given back once it is stored.
        events: by session, the JSON of its events.
        waiters: done once it is stored.
    """

    def __init__(self) -> None:
        self.changes: Changes = Changes()
        self.size: int = 0
        self.held: int = 0
        self.events: dict[LiveSession, list[bytes]] = {}
        self.waiters: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.events or self.waiters or self.held or self.changes.envelopes)

    @property
    def has_rows(self) -> bool:
        """Whether the store has anything to do."""
        return bool(self.events or self.changes.envelopes)

    def of(self, session: LiveSession) -> list[bytes]:
        """Return a session's list of events; its row is stored, too."""
        events = self.events.get(session)
        if events is None:
            events = self.events[session] = []
        return events

    def seal(self) -> list[News]:
        """Complete the rows with those of the sessions as they are now, and return what they mean."""
        news: list[News] = []
        changes = self.changes
        for session, events in self.events.items():
            fold = session.fold
            row = copy.copy(fold.row)
            changes.sessions.append(row)
            snapshot = fold.snapshot()
            if snapshot is not None:
                changes.snapshots.append(snapshot)
            news.append(News(session, row, _chunks(row.last_sequence, events)))
        return news


def _chunks(last: int, events: list[bytes]) -> list[Chunk]:
    first = last - len(events) + 1
    size = sum(map(len, events))
    # Of similar events each chunk takes about as many bytes; one write to a viewer is not much more.
    step = len(events) if size <= CHUNK_BYTES else max(1, CHUNK_BYTES * len(events) // size)
    chunks: list[Chunk] = []
    for start in range(0, len(events), step or 1):
        part = events[start : start + step]
        begin = first + start
        chunks.append(Chunk(begin, begin + len(part) - 1, None, encode_messages(begin, part)))
    return chunks
