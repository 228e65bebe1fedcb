"""The one task that takes envelopes in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import anyio
import msgspec

from sandbox_agent.engine.project import Projector
from sandbox_agent.engine.route import Held, Route
from sandbox_agent.errors import PersistError, SandboxAgentError
from sandbox_agent.persist.store import EnvelopeRow, SessionRow, SessionStore
from sandbox_agent.persist.store.rows import NO_SESSION
from sandbox_agent.server.recorder.committer import RETRY_SECONDS, Committer
from sandbox_agent.server.recorder.intake import Entry, Intake
from sandbox_agent.server.recorder.naming import session_name
from sandbox_agent.server.recorder.pace import Pace
from sandbox_agent.server.recorder.published_session import LiveSession
from sandbox_agent.server.recorder.rows import turn_id_of
from sandbox_agent.server.recorder.tap import Tap
from sandbox_agent.wire.universal import TurnEventData, UniversalEvent

__all__ = ["Sessions", "Worker"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

T = TypeVar("T")
P = ParamSpec("P")

# Envelopes whose routes are found at once.
SLICE = 16
# What may be gathered while a commit is in flight.
BATCH_BYTES = 1 * 1024 * 1024
# A line that is no envelope is shown in so many sessions of its connection, those used last.
GARBAGE_SESSIONS = 16


class Sessions(Protocol):
    """The sessions in memory, and how others come there."""

    async def open(self, row: SessionRow) -> LiveSession: ...

    async def make(self, row: SessionRow) -> tuple[LiveSession, list[UniversalEvent]]: ...

    async def free_name(self, native: str) -> str: ...

    def keep(self, live: LiveSession) -> None: ...

    def drop(self, live: LiveSession) -> None: ...

    def is_forgotten(self, key: int) -> bool: ...

    def find_native(self, agent: str, native: str) -> LiveSession | None: ...


class Worker:
    """Takes entries from the intake, one after the other, into the committer's batch.

    Attributes:
        busy: whether it is at work on something that the intake doesn't hold any more.
        last_connection_envelope: the index of the newest envelope that belongs to no session.
    """

    def __init__(
        self,
        intake: Intake,
        committer: Committer,
        store: SessionStore,
        sessions: Sessions,
        clock: Callable[[], int],
        pace: Pace,
    ) -> None:
        self.busy: bool = False
        self.last_connection_envelope: int = 0
        self._intake = intake
        self._committer = committer
        self._store = store
        self._sessions = sessions
        self._clock = clock
        self._pace = pace

    async def run(self) -> None:
        """Work for ever."""
        intake, pace = self._intake, self._pace
        pace.begin()
        while True:
            entry = intake.take()
            if entry is None:
                self.busy = False
                self._committer.offer()
                await intake.wait()
                await intake.gather()
                pace.begin()
                continue
            self.busy = True
            try:
                if isinstance(entry, Entry):
                    await self._record(entry)
                else:
                    await entry.do()
            except Exception:  # the boundary: what goes wrong with one entry must not end the recorder
                logger.exception("something could not be recorded")
            if pace.over:
                await self._breathe()

    async def _breathe(self) -> None:
        self._committer.offer()
        if self._committer.batch.size > BATCH_BYTES:
            await self._committer.taken()
        await self._pace.turn()

    async def _record(self, entry: Entry) -> None:
        tap, lines = entry.tap, entry.data.split(b"\n")
        pace = self._pace
        router = tap.router
        try:
            for start in range(0, len(lines), SLICE):
                some = lines[start : start + SLICE] if len(lines) > SLICE else lines
                routes = router.route(entry.sender, some, entry)
                for line, route in zip(some, routes, strict=True):
                    live = tap.sessions.get(route) if type(route) is str else None
                    if live is None:
                        await self._record_special(entry, line, route)
                    else:
                        self._take(live, entry, line)
                if pace.over and start + SLICE < len(lines):
                    await self._breathe()
            for held in router.strays():
                self._keep_for_connection(held.stamp, held.line)
        finally:
            self._committer.batch.held += entry.size

    def _take(self, live: LiveSession, entry: Entry, line: bytes, *, subject_id: str | None = None) -> None:
        batch = self._committer.batch
        live.fold.take(
            batch,
            batch.of(live),
            entry.sender,
            line,
            entry.time_ms,
            entry.tap.connection_id,
            subject_id=subject_id,
            by=entry.client or None,
        )

    async def _record_special(self, entry: Entry, line: bytes, to: str | Route) -> None:
        tap = entry.tap
        route = Route(to) if isinstance(to, str) else to
        if route.held:
            return
        if route.every:
            self._to_all(entry, line)
            return
        native = route.native
        live: LiveSession | None = None
        if native is not None:
            live = tap.sessions.get(native)
            if live is None:
                bound = tap.bound if route.bound else None
                live = bound or await self._find(entry, native, route.before)
                self._join(tap, native, live, managed=bound is not None)
        elif route.bound:
            live = tap.bound
        if live is None or self._sessions.is_forgotten(live.row.key):
            for held in route.before:
                self._keep_for_connection(held.stamp, held.line)
            self._keep_for_connection(entry, line)
            return
        for held in route.before:
            if isinstance(held.stamp, Entry):
                await self._take_prompt(live, held.stamp, held.line)
        if route.method == "session/prompt":
            await self._take_prompt(live, entry, line)
        else:
            self._take(live, entry, line)
        if route.reply is not None:
            live.fold.learner.reply(route.reply, line)
        if route.closed and native is not None and tap.sessions.pop(native, None) is not None:
            live.taps.discard((tap, native))

    async def _take_prompt(self, live: LiveSession, entry: Entry, line: bytes) -> None:
        row = live.fold.row
        turn_id = turn_id_of(line) if row.managed and entry.sender == "client" else None
        if turn_id is not None and turn_id not in live.fold.turns:
            turn = await self._read(self._store.turn, row.key, turn_id=turn_id)
            if turn is not None:
                live.fold.turns[turn_id] = turn
        if row.managed and entry.sender == "client":
            # The service numbers its own turns.
            newest = await self._read(self._store.turns, row.key, limit=1)
            if newest:
                live.fold.turn_number = max(live.fold.turn_number, newest[-1].number)
        self._take(live, entry, line, subject_id=turn_id)

    def _to_all(self, entry: Entry, line: bytes) -> None:
        sessions = list(dict.fromkeys(entry.tap.sessions.values()))
        if b'"_adapter/invalid_stdout"' in line[:200]:
            sessions = sessions[-GARBAGE_SESSIONS:]
        for live in sessions:
            self._take(live, entry, line)
        if not sessions:
            self._keep_for_connection(entry, line)

    def _keep_for_connection(self, stamp: object, line: bytes) -> None:
        if not isinstance(stamp, Entry):
            return
        self.last_connection_envelope += 1
        batch = self._committer.batch
        batch.changes.envelopes.append(
            EnvelopeRow(
                NO_SESSION,
                self.last_connection_envelope,
                stamp.time_ms,
                stamp.sender,
                stamp.tap.connection_id,
                line,
            )
        )
        batch.size += len(line)

    async def _find(self, entry: Entry, native: str, before: Sequence[Held]) -> LiveSession:
        """Return the session that the agent calls so, or a new one."""
        tap = entry.tap
        live = self._sessions.find_native(tap.agent, native)
        if live is not None:
            return live
        row = await self._read(self._store.native_session, tap.agent, native)
        if row is not None and not self._sessions.is_forgotten(row.key):
            live = await self._read(self._sessions.open, row)
            if live.torn:
                await self.close_torn(live)
            return live
        first = before[0].stamp if before else entry
        now = first.time_ms if isinstance(first, Entry) else entry.time_ms
        name = await self._read(self._sessions.free_name, session_name(native))
        new = SessionRow(
            key=0,
            session_id=name,
            agent=tap.agent,
            created_at=now,
            updated_at=now,
            native_session_id=native,
            server_id=tap.server_id,
            directory=next((found for held in before if (found := _directory(held.line))), None),
        )
        live, events = await self._read(self._sessions.make, new)
        self._sessions.keep(live)
        batch = self._committer.batch
        live.fold.put(batch, batch.of(live), events, live.fold.tick(now))
        return live

    def _join(self, tap: Tap, native: str, live: LiveSession, *, managed: bool) -> None:
        tap.sessions[native] = live
        live.taps.add((tap, native))
        live.fold.row.server_id = tap.server_id
        if managed or live.fold.row.native_session_id is None:
            live.fold.row.native_session_id = native
        self._sessions.keep(live)

    async def bind(self, tap: Tap, session: LiveSession) -> None:
        """The sessions that a connection opens from now on are that one."""
        tap.bound = session
        tap.router.bind()

    async def close(self, tap: Tap) -> None:
        """The connection is over: what nobody answered stays unanswered."""
        for held in tap.router.close():
            self._keep_for_connection(held.stamp, held.line)
        sessions = list(dict.fromkeys(tap.sessions.values()))
        for live in sessions:
            live.taps = {taken for taken in live.taps if taken[0] is not tap}
            if not live.taps and live.fold.projector.open_turns:
                await self.apply(live, _lost_agent)
        tap.sessions.clear()
        tap.bound = None

    async def job(self, do: Callable[[], Awaitable[None]], stored: asyncio.Future[None]) -> None:
        """Do something whose caller waits until it is stored."""
        committer = self._committer
        committer.complete = False  # its rows belong together
        failure: Exception | None = None
        try:
            await do()
        except SandboxAgentError as error:
            failure = error
        except Exception as error:  # the boundary: it is the caller's, too
            logger.exception("what was to be done to a session failed")
            failure = error
        finally:
            committer.complete = True
        if failure is None:
            committer.batch.waiters.append(stored)
        elif not stored.done():
            stored.set_exception(failure)

    async def apply(self, live: LiveSession, make: Callable[[Projector, int], list[UniversalEvent]]) -> None:
        """Tell the session's fold what no envelope tells, and add the events that it makes, if any."""
        if self._sessions.is_forgotten(live.row.key):
            return
        committer = self._committer
        complete, committer.complete = committer.complete, False  # its rows belong together
        try:
            await self._apply(live, make)
        finally:
            committer.complete = complete

    async def _apply(self, live: LiveSession, make: Callable[[Projector, int], list[UniversalEvent]]) -> None:
        fold = live.fold
        now = fold.tick(self._clock())
        events = make(fold.projector, now)
        for event in events:
            data = event.data
            if event.type == "turn.ended" and isinstance(data, TurnEventData) and data.turn_id is not None:
                await self._know_turn(live, data.turn_id)
        batch = self._committer.batch
        fold.put(batch, batch.of(live), events, now)

    async def _know_turn(self, live: LiveSession, turn_id: str) -> None:
        if turn_id not in live.fold.turns:
            turn = await self._read(self._store.turn, live.fold.row.key, turn_id=turn_id)
            if turn is not None:
                live.fold.turns[turn_id] = turn

    async def close_torn(self, live: LiveSession) -> None:
        """Close what was open when the server ended."""
        if not live.torn:
            return
        live.torn = False
        lost, live.lost_turns = live.lost_turns, []

        def make(projector: Projector, now: int) -> list[UniversalEvent]:
            events = list(projector.turn_interrupted(now, reason="server_restarted"))
            for turn_id in lost:
                events += projector.turn_interrupted(now, reason="server_restarted", turn_id=turn_id)
            return events

        await self.apply(live, make)

    async def update(self, live: LiveSession, columns: dict[str, Any]) -> None:
        """Change columns of a session's row."""
        for name, value in columns.items():
            setattr(live.fold.row, name, value)
        self._committer.batch.of(live)

    async def nothing(self) -> None:
        """Only wait for one's place in the queue."""

    async def forget(self, live: LiveSession) -> None:
        """Take nothing for a session any more; a connection that goes on with it makes a new one."""
        self._sessions.drop(live)
        for tap, native in live.taps:
            tap.sessions.pop(native, None)
            tap.router.forget(native)
            if tap.bound is live:
                tap.bound = None
        live.taps = set()

    async def _read(self, read: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read what can't be done without, however long the store refuses."""
        while True:
            try:
                return await read(*args, **kwargs)
            except PersistError as error:
                self._committer.refused(error)
            await anyio.sleep(RETRY_SECONDS)


class _NewParams(msgspec.Struct):
    cwd: object = None


class _New(msgspec.Struct):
    params: _NewParams | None = None


_news = msgspec.json.Decoder(_New)


def _directory(line: bytes) -> str | None:
    try:
        params = _news.decode(line).params
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return params.cwd if params is not None and isinstance(params.cwd, str) else None


def _lost_agent(projector: Projector, now: int) -> list[UniversalEvent]:
    return projector.turn_interrupted(now, reason="connection_closed")
