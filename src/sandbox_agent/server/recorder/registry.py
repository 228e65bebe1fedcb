"""The sessions in memory: how they are loaded from the store, under which names, and how long they stay."""

from __future__ import annotations

import asyncio
import copy
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from sandbox_agent.engine.project import Projector
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import SessionRow, SessionStore
from sandbox_agent.server.errors import session_exists, session_not_found
from sandbox_agent.server.recorder.projection import REPEATS, Projection, Repeats
from sandbox_agent.server.recorder.published_session import PublishedSession, TailMemory
from sandbox_agent.server.recorder.rows import turn_id_of
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads, members
from sandbox_agent.wire.universal import UniversalEvent

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How many sessions that nothing uses stay in memory.
RECENT = 64
MAX_NAME = 200
PAGE_ENVELOPES = 500
# How many of the newest turns are searched for one that still runs.
TURNS = 64
_NOT_IN_PATHS = re.compile(r"[^A-Za-z0-9._~:@-]")


class RecordedSession(PublishedSession):
    """A session in memory: what its viewers see, and what the recorder makes of its envelopes.

    Attributes:
        projection: the recorder's; ahead of what is published.
        interrupted: something was open when the server ended, and must be closed first.
        lost_turns: turns that run according to their rows, and of which the projection knows nothing.
    """

    def __init__(
        self, row: SessionRow, projection: Projection, store: SessionStore, memory: TailMemory
    ) -> None:
        super().__init__(row, store, memory)
        self.projection: Projection = projection
        self.interrupted: bool = False
        self.lost_turns: list[str] = []


class SessionRegistry:
    """Sessions by name, by key and by the agent's id. One name is one object as long as anything uses it.

    Attributes:
        tails: the newest events of the sessions in memory.
    """

    def __init__(self, store: SessionStore) -> None:
        self.tails: TailMemory = TailMemory()
        self._store = store
        self._sessions: WeakValueDictionary[str, RecordedSession] = WeakValueDictionary()
        self._natives: WeakValueDictionary[tuple[str, str], RecordedSession] = WeakValueDictionary()
        self._recent: OrderedDict[str, RecordedSession] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._reserved: set[str] = set()
        self._forgotten: set[int] = set()
        self._last_key = 0

    @property
    def sessions(self) -> list[RecordedSession]:
        """The sessions in memory."""
        return list(self._sessions.values())

    def get(self, name: str) -> RecordedSession | None:
        """Return a session if it is in memory."""
        return self._sessions.get(name)

    async def open(self, name: str) -> RecordedSession:
        """Return a session, loaded from the store if it is not in memory.

        Raises:
            ServerSessionNotFoundError: there is no such session.
            PersistError: the store failed.
        """
        session = self._sessions.get(name)
        if session is None:
            async with self.lock(name):
                session = self._sessions.get(name) or await self._load(name)
        self.keep(session)
        return session

    async def _load(self, name: str) -> RecordedSession:
        row = await self._store.session(name)
        if row is None or self.is_forgotten(row.key):
            raise session_not_found(name)
        # The projection as it was when the newest row was stored, ready for more envelopes.
        store = self._store
        projector, time_ms, repeats = await _project_again(store, row)
        turns = await store.turns(row.key, limit=TURNS)
        projection = Projection(
            copy.copy(row),
            projector,
            time_ms=max(time_ms, row.updated_at),
            turn_number=turns[-1].number if turns else 0,
        )
        projection.repeats = repeats
        session = RecordedSession(row, projection, store, self.tails)
        known = projector.open_turns
        for turn_id in known:
            turn = await store.turn(row.key, turn_id=turn_id)
            if turn is not None:
                projection.turns[turn_id] = turn
        for request_id in (*projector.pending_permissions, *projector.pending_questions):
            request = await store.permission(row.key, request_id)
            if request is not None:
                projection.requests[request_id] = request
        for turn in turns:
            if turn.state == "running" and turn.turn_id not in known:
                projection.turns[turn.turn_id] = turn
                session.lost_turns.append(turn.turn_id)
        state = projector.snapshot()
        opened = any(state[name] for name in ("turns", "permissions", "questions", "texts", "tools"))
        session.interrupted = opened or bool(session.lost_turns)
        return session

    async def make(self, row: SessionRow) -> tuple[RecordedSession, list[UniversalEvent]]:
        """Return a new session under a new key, and its first event. Nothing is stored."""
        row = copy.copy(row)
        key = await self._store.next_key()
        row.key = self._last_key = max(key, self._last_key + 1)
        projector = Projector(row.session_id, native_session_id=row.native_session_id)
        session = RecordedSession(copy.copy(row), Projection(row, projector), self._store, self.tails)
        return session, projector.session_started(row.created_at, metadata=_started_metadata(row))

    def keep(self, session: RecordedSession) -> None:
        """Register a session and hold it for a while; the one that was not used longest is released."""
        name = session.session_id
        self._sessions[name] = session
        self._recent[name] = session
        self._recent.move_to_end(name)
        self._reserved.discard(name)
        row = session.projection.row
        if row.native_session_id is not None:
            self._natives[row.agent, row.native_session_id] = session
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def drop(self, session: RecordedSession) -> None:
        """Remove a session for good: it is about to be deleted."""
        self._forgotten.add(session.row.key)
        name = session.session_id
        if self._sessions.get(name) is session:
            del self._sessions[name]
        self._recent.pop(name, None)
        for native in [native for native, held in self._natives.items() if held is session]:
            del self._natives[native]

    def undrop(self, session: RecordedSession) -> None:
        """Let a session be loaded again: it was not deleted."""
        self._forgotten.discard(session.row.key)

    def is_forgotten(self, key: int) -> bool:
        """Return whether that session is about to be deleted, or is."""
        return key in self._forgotten

    def find_native(self, agent: str, native: str) -> RecordedSession | None:
        """Return the newest session in memory that the agent knows under that id."""
        return self._natives.get((agent, native))

    async def free_name(self, native: str) -> str:
        """Reserve and return a name for a session with that native id; ``keep`` ends the reservation."""
        wanted = _NOT_IN_PATHS.sub("_", native)[:MAX_NAME]
        if not wanted.strip("."):
            wanted = f"session-{wanted.replace('.', '_')}"
        name, number = wanted, 1
        while self._is_used(name) or await self._store.session(name) is not None:
            number += 1
            name = f"{wanted}-{number}"
        self._reserved.add(name)
        return name

    @asynccontextmanager
    async def reserve(self, name: str) -> AsyncGenerator[None]:
        """Reserve a name while the context lasts; opening a session of that name waits for its end.

        Raises:
            SessionAlreadyExistsError: a session of that name exists.
            PersistError: the store failed.
        """
        if self._is_used(name):
            raise session_exists(name)
        self._reserved.add(name)
        try:
            async with self.lock(name):
                if await self._store.session(name) is not None:
                    raise session_exists(name)
                yield
        finally:
            self._reserved.discard(name)

    def _is_used(self, name: str) -> bool:
        return name in self._reserved or name in self._sessions

    def lock(self, name: str) -> asyncio.Lock:
        """Return the lock that is held while a session of that name is loaded, created or removed."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock


def _started_metadata(row: SessionRow) -> dict[str, Any]:
    """Return the metadata of a session's first event."""
    metadata = {
        "agent": row.agent,
        "managed": row.managed,
        "server_id": row.server_id,
        "directory": row.directory,
        "title": row.title,
        "model": row.model,
        "agent_mode": row.agent_mode or None,
        "permission_mode": row.permission_mode or None,
        "variant": row.variant,
    }
    return {name: value for name, value in metadata.items() if value is not None}


async def _project_again(store: SessionStore, row: SessionRow) -> tuple[Projector, int, Repeats]:
    """Return the projector of the newest snapshot, with the envelopes after it projected again.

    Also the time of the newest of these, and the large envelopes.
    """
    projector: Projector | None = None
    repeats = Repeats()
    after = 0
    time_ms = 0
    snapshot = await store.snapshot(row.key)
    if snapshot is not None:
        try:
            document = members(loads(snapshot.data))
            repeats = Repeats(msgspec.convert(document.pop(REPEATS, {}), dict[str, int]))
            projector = Projector.restore(document)
            after = snapshot.envelope
        except (msgspec.ValidationError, InvalidEnvelopeError) as error:
            logger.warning("the snapshot of session %s can't be read (%s)", row.session_id, error)
    if projector is None:
        projector = Projector(row.session_id, native_session_id=row.native_session_id)
    try:
        while after < row.last_envelope:
            envelopes = await store.envelopes(row.key, after=after, limit=PAGE_ENVELOPES)
            if not envelopes:
                break
            for envelope in envelopes:
                prompted = row.managed and envelope.sender == "client"
                subject_id = turn_id_of(envelope.data) if prompted else None
                projector.feed(envelope.sender, envelope.data, envelope.time, subject_id=subject_id)
                repeats.add(envelope.data, envelope.index)
                time_ms = envelope.time
            after = envelopes[-1].index
    except PersistError:
        raise
    except Exception:  # the boundary: the session continues without what was open
        logger.exception("session %s can't be projected again", row.session_id)
    if projector.sequence != row.last_sequence:
        logger.warning(
            "session %s continues without what was open: projected again it has %d events, stored are %d",
            row.session_id,
            projector.sequence,
            row.last_sequence,
        )
        projector = Projector(
            row.session_id,
            native_session_id=row.native_session_id,
            first_sequence=row.last_sequence + 1,
        )
    return projector, time_ms, repeats
