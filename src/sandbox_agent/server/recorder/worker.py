"""The task that processes the entries of the queue in order, and adds their rows to the committer's batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import anyio

from sandbox_agent.engine.project import Projector
from sandbox_agent.engine.route import Held, Route, Router
from sandbox_agent.errors import PersistError, SandboxAgentError
from sandbox_agent.persist.store import EnvelopeRow, SessionRow, SessionStore
from sandbox_agent.server.log_context import log_fields
from sandbox_agent.server.recorder.committer import RETRY_SECONDS, Committer
from sandbox_agent.server.recorder.queue import (
    Binding,
    Closing,
    Entry,
    Envelopes,
    Job,
    Pace,
    RecorderQueue,
    Stopping,
    Tap,
)
from sandbox_agent.server.recorder.registry import RecordedSession, SessionRegistry
from sandbox_agent.server.recorder.rows import Row, turn_id_of
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads, members
from sandbox_agent.wire.universal import TurnEventData, UniversalEvent

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

T = TypeVar("T")
P = ParamSpec("P")
# Makes events with a session's projector, given the time in milliseconds.
MakeEvents = Callable[[Projector, int], Sequence[UniversalEvent]]

# Envelopes that are routed at once.
SLICE = 16
# How much may be gathered while a commit is in flight.
BATCH_BYTES = 1 * 1024 * 1024
# A message that an agent begins after its response ends when nothing was added for so long.
LATE_SECONDS = 1.0
# A line that is no envelope is shown in so many sessions of its connection, those opened last.
GARBAGE_SESSIONS = 16


@dataclass(eq=False, slots=True)
class _Connection:
    """What the recorder knows of one connection.

    Attributes:
        router: finds the session of an envelope.
        sessions: the open ones by the agent's id of them; the one that was opened last is at the end.
        bound: the session that new ones belong to.
    """

    router: Router = field(default_factory=lambda: Router())
    sessions: dict[str, RecordedSession] = field(default_factory=dict[str, RecordedSession])
    bound: RecordedSession | None = None


class Worker:
    """Projects envelopes and runs jobs, in the order of the queue.

    The rows of an entry reach the committer together, so that no transaction holds half of a job.

    Attributes:
        busy: whether it works on something that the queue does not hold any more.
    """

    def __init__(
        self,
        queue: RecorderQueue,
        registry: SessionRegistry,
        committer: Committer,
        store: SessionStore,
        clock: Callable[[], int],
    ) -> None:
        self.busy: bool = False
        self._connections: dict[Tap, _Connection] = {}
        self._queue = queue
        self._registry = registry
        self._committer = committer
        self._store = store
        self._clock = clock
        self._pace = Pace()
        self._rows: defaultdict[RecordedSession, list[Row]] = defaultdict(list)
        # Sessions with a message that the agent began after its response, and when it last added to it.
        self._late: dict[RecordedSession, float] = {}

    @property
    def unstored(self) -> int:
        """How many envelopes have rows that the committer does not have yet."""
        return sum(isinstance(row, EnvelopeRow) for rows in self._rows.values() for row in rows)

    @property
    def unstored_sessions(self) -> Sequence[str]:
        """The sessions of these rows."""
        return [session.session_id for session in list(self._rows)]

    @property
    def open_sessions(self) -> int:
        """How many sessions are open at an agent."""
        return len(
            {each for connection in self._connections.values() for each in connection.sessions.values()}
        )

    def uses(self, session: RecordedSession) -> bool:
        """Return whether a connection has the session open, or rows of it are not stored."""
        return self._is_open(session) or session in self._rows or self._committer.has_rows(session)

    def _is_open(self, session: RecordedSession) -> bool:
        return any(session in connection.sessions.values() for connection in self._connections.values())

    async def run(self) -> None:
        """Work until cancelled."""
        queue, pace = self._queue, self._pace
        pace.start_slice()
        while True:
            entry = queue.pop()
            if entry is None:
                self.busy = False
                self._committer.offer()
                if await queue.wait(self._late_in):
                    await queue.gather()
                else:
                    await self._end_late_texts()
                pace.start_slice()
                continue
            self.busy = True
            try:
                await self._process(entry)
            except Exception:  # the boundary: a failure in one entry must not end the recorder
                with _log_fields_of(entry):
                    logger.exception("something could not be recorded")
            finally:
                self._flush_rows()
            if pace.is_over:
                await self._yield()

    async def _process(self, entry: Entry) -> None:
        if isinstance(entry, Envelopes):
            await self._record(entry)
        elif isinstance(entry, Binding):
            connection = self._connection(entry.tap)
            connection.bound = entry.session
            connection.router.bind()
        elif isinstance(entry, Stopping):
            for session in dict.fromkeys(self._connection(entry.tap).sessions.values()):
                if session.projection.projector.open_turns:
                    await self.add_events(session, _stopped_agent)
        elif isinstance(entry, Closing):
            connection = self._connections.pop(entry.tap, None)
            for session in dict.fromkeys(connection.sessions.values() if connection else ()):
                projector = session.projection.projector
                if projector.open_turns and not self._is_open(session):
                    await self.add_events(session, _lost_agent)
                elif projector.has_late_texts and not self._is_open(session):
                    await self.add_events(session, _end_late_texts)
        else:
            await entry.run()

    def _connection(self, tap: Tap) -> _Connection:
        connection = self._connections.get(tap)
        if connection is None:
            connection = self._connections[tap] = _Connection()
        return connection

    async def _yield(self) -> None:
        """Let other tasks run, and wait while the committer has enough."""
        self._committer.offer()
        if self._committer.size > BATCH_BYTES:
            await self._committer.wait_taken()
        await self._pace.wait_turn()

    def _flush_rows(self) -> None:
        """Add the rows of this entry to the committer's batch, with those of the sessions themselves."""
        for session, rows in self._rows.items():
            rows += session.projection.state_rows()
            self._committer.add(session, rows)
            if session.projection.projector.has_late_texts:
                self._late[session] = time.monotonic()
            elif self._late:
                self._late.pop(session, None)
        self._rows.clear()

    @property
    def _late_in(self) -> float | None:
        """How long until a message ends that an agent began after its response; None without one."""
        return max(min(self._late.values()) + LATE_SECONDS - time.monotonic(), 0) if self._late else None

    async def _end_late_texts(self) -> None:
        now = time.monotonic()
        for session in [each for each, since in self._late.items() if since + LATE_SECONDS <= now]:
            del self._late[session]
            await self.add_events(session, _end_late_texts)
        self._flush_rows()

    # envelopes

    async def _record(self, entry: Envelopes) -> None:
        lines = entry.data.split(b"\n")
        connection = self._connection(entry.tap)
        try:
            for start in range(0, len(lines), SLICE):
                some = lines[start : start + SLICE] if len(lines) > SLICE else lines
                routes = connection.router.route(entry.sender, some, entry)
                for line, route in zip(some, routes, strict=True):
                    session = connection.sessions.get(route) if type(route) is str else None
                    if session is None:
                        await self._record_special(connection, entry, line, route)
                    else:
                        self._project(session, entry, line)
                if self._pace.is_over and start + SLICE < len(lines):
                    self._flush_rows()
                    await self._yield()
        finally:
            self._committer.add_queued(len(entry.data))

    def _project(
        self, session: RecordedSession, entry: Envelopes, line: bytes, *, subject_id: str | None = None
    ) -> None:
        self._rows[session] += session.projection.add_envelope(
            entry.sender,
            line,
            entry.time_ms,
            entry.tap.connection_id,
            subject_id=subject_id,
            client=entry.client or None,
        )

    async def _record_special(
        self, connection: _Connection, entry: Envelopes, line: bytes, to: str | Route
    ) -> None:
        """Record an envelope that is not simply its open session's; one of no session is not kept."""
        route = Route(to) if isinstance(to, str) else to
        if route.held:
            return
        if route.every:
            self._project_in_all(connection, entry, line)
            return
        session = await self._session_of(connection, entry, route)
        if session is None or self._registry.is_forgotten(session.row.key):
            return
        for held in route.before:
            if isinstance(held.stamp, Envelopes):
                await self._project_prompt(session, held.stamp, held.line)
        if route.method == "session/prompt":
            await self._project_prompt(session, entry, line)
        else:
            self._project(session, entry, line)
        if route.reply is not None:
            session.projection.add_reply(route.reply, line)
        if route.closed and route.native is not None:
            connection.sessions.pop(route.native, None)

    async def _session_of(
        self, connection: _Connection, entry: Envelopes, route: Route
    ) -> RecordedSession | None:
        if route.native is None:
            return connection.bound if route.bound else None
        session = connection.sessions.get(route.native)
        if session is None:
            bound = connection.bound if route.bound else None
            session = bound or await self._find(entry, route.native, route.before)
            connection.sessions[route.native] = session
            row = session.projection.row
            row.server_id = entry.tap.server_id
            if bound is not None or row.native_session_id is None:
                row.native_session_id = route.native
            self._registry.keep(session)
        return session

    async def _project_prompt(self, session: RecordedSession, entry: Envelopes, line: bytes) -> None:
        projection = session.projection
        turn_id = None
        if projection.row.managed and entry.sender == "client":
            turn_id = turn_id_of(line)
            if turn_id is not None:
                await self._load_turn(session, turn_id)
            # The driven session numbers its own turns.
            newest = await self._read(self._store.turns, projection.row.key, limit=1)
            if newest:
                projection.turn_number = max(projection.turn_number, newest[-1].number)
        self._project(session, entry, line, subject_id=turn_id)

    def _project_in_all(self, connection: _Connection, entry: Envelopes, line: bytes) -> None:
        sessions = list(dict.fromkeys(connection.sessions.values()))
        if b'"_adapter/invalid_stdout"' in line[:200]:
            sessions = sessions[-GARBAGE_SESSIONS:]
        for session in sessions:
            self._project(session, entry, line)

    async def _find(self, entry: Envelopes, native: str, before: Sequence[Held]) -> RecordedSession:
        """Return the session that the agent calls so, or a new one."""
        agent = entry.tap.agent
        session = self._registry.find_native(agent, native)
        if session is not None:
            return session
        row = await self._read(self._store.native_session, agent, native)
        if row is not None and not self._registry.is_forgotten(row.key):
            session = await self._read(self._registry.open, row.session_id)
            await self.close_interrupted(session)
            return session
        first = before[0].stamp if before else entry
        now = first.time_ms if isinstance(first, Envelopes) else entry.time_ms
        name = await self._read(self._registry.free_name, native)
        new = SessionRow(
            key=0,
            session_id=name,
            agent=agent,
            created_at=now,
            updated_at=now,
            native_session_id=native,
            server_id=entry.tap.server_id,
            directory=next((found for held in before if (found := _directory(held.line))), None),
        )
        session, events = await self._read(self._registry.make, new)
        self._registry.keep(session)
        with _log_fields_of(first if isinstance(first, Envelopes) else entry, session_id=name):
            logger.info("session %s of agent %s is recorded", name, agent)
        self._rows[session] += session.projection.add_events(events, session.projection.next_time(now))
        return session

    # jobs

    async def run_job(self, job: Callable[[], Awaitable[None]], stored: asyncio.Future[None]) -> None:
        """Run a job whose caller waits until its rows are stored."""
        try:
            await job()
        except Exception as error:  # the boundary: the caller raises it
            if not isinstance(error, SandboxAgentError):
                logger.exception("a job of the recorder failed")
            if not stored.done():
                stored.set_exception(error)
        else:
            self._committer.resolve_with_next(stored)

    async def add_events(self, session: RecordedSession, make: MakeEvents) -> None:
        """Add events that no envelope makes, unless the session is about to be deleted."""
        if self._registry.is_forgotten(session.row.key):
            return
        projection = session.projection
        now = projection.next_time(self._clock())
        events = make(projection.projector, now)
        for event in events:
            data = event.data
            if event.type == "turn.ended" and isinstance(data, TurnEventData) and data.turn_id is not None:
                await self._load_turn(session, data.turn_id)
        self._rows[session] += projection.add_events(events, now)

    async def update_row(self, session: RecordedSession, columns: dict[str, Any]) -> None:
        """Change columns of a session's row."""
        for name, value in columns.items():
            setattr(session.projection.row, name, value)
        self._rows[session] += []

    async def close_interrupted(self, session: RecordedSession) -> None:
        """Close what was open in a session when the server ended."""
        if not session.interrupted:
            return
        session.interrupted = False
        lost, session.lost_turns = session.lost_turns, []

        def make(projector: Projector, now: int) -> list[UniversalEvent]:
            events = list(projector.turn_interrupted(now, reason="server_restarted"))
            for turn_id in lost:
                events += projector.turn_interrupted(now, reason="server_restarted", turn_id=turn_id)
            return events

        await self.add_events(session, make)

    async def forget(self, session: RecordedSession) -> None:
        """Record no more envelopes of a session; a connection that continues it makes a new one."""
        self._registry.drop(session)
        for connection in self._connections.values():
            for native in [native for native, opened in connection.sessions.items() if opened is session]:
                del connection.sessions[native]
                connection.router.forget(native)
            if connection.bound is session:
                connection.bound = None

    # the store

    async def _load_turn(self, session: RecordedSession, turn_id: str) -> None:
        turns = session.projection.turns
        if turn_id not in turns:
            turn = await self._read(self._store.turn, session.projection.row.key, turn_id=turn_id)
            if turn is not None:
                turns[turn_id] = turn

    async def _read(self, read: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read what the next step needs, however long the store fails."""
        while True:
            try:
                return await read(*args, **kwargs)
            except PersistError as error:
                self._committer.report_failure(error)
            await anyio.sleep(RETRY_SECONDS)


def _log_fields_of(entry: Entry, *, session_id: str | None = None) -> AbstractContextManager[None]:
    """Return a context whose lines in the log have the ids of an entry."""
    tap = None if isinstance(entry, Job) else entry.tap
    return log_fields(
        request_id=(entry.request_id or None) if isinstance(entry, Envelopes) else None,
        server_id=tap and tap.server_id,
        connection_id=tap and tap.connection_id,
        session_id=session_id,
    )


def _directory(line: bytes) -> str | None:
    """Return the directory that a request to create a session names."""
    try:
        directory: object = members(members(loads(line)).get("params")).get("cwd")
    except InvalidEnvelopeError:
        return None
    return directory if isinstance(directory, str) else None


def _stopped_agent(projector: Projector, now: int) -> Sequence[UniversalEvent]:
    return [*_lost_agent(projector, now), *projector.agent_exited(now, exit_code=0)]


def _lost_agent(projector: Projector, now: int) -> Sequence[UniversalEvent]:
    return projector.turn_interrupted(now, reason="connection_closed")


def _end_late_texts(projector: Projector, now: int) -> Sequence[UniversalEvent]:
    return projector.late_texts_ended(now)
