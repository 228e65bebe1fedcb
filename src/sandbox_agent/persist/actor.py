"""Drivers that keep sessions in the state of an actor, or in any mutable mapping."""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any, ClassVar, Final, Protocol, TypeVar

import anyio

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.actor_data import (
    ActorData,
    Plain,
    event_to_plain,
    plain_to_event,
    plain_to_record,
    position,
    record_to_plain,
)
from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    NotLastError,
    check_session,
    slice_page,
    taken_id_error,
    taken_index_error,
)
from sandbox_agent.persist.follow import FollowedDriver, Mark
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

T = TypeVar("T")
Save = Callable[[], Awaitable[object] | object]

DEFAULT_STATE_KEY: Final = "_sandboxAgentPersist"
_MAX_SESSIONS: Final = 1_024
_MAX_EVENTS_PER_SESSION: Final = 500
# How many generations are remembered per remembered session.
_WRITERS_PER_SESSION: Final = 4


class StatefulContext(Protocol):
    """The part of an actor's context that ``RivetSessionPersistDriver`` uses."""

    @property
    def state(self) -> MutableMapping[str, Any]:
        """The actor's state."""
        ...


class StateSessionPersistDriver(FollowedDriver):
    """Keeps the newest sessions, and the newest events of each, in a mapping: plain JSON under one key.

    Nothing else may change the value of that key while the driver is in use. Beyond the limits, the oldest
    are dropped: sessions by (created_at, id) with their events, events by (event_index, id).

    Args:
        state: the mapping, or a function that returns it at every call. Every change sets
            ``state[state_key]``, so a mapping that observes only its own members notices it.
        state_key: the member that belongs to the driver.
        save: called, and awaited, before a change is acknowledged. If it raises, the caller gets
            PersistError and the state is restored.
        max_sessions: how many sessions are kept.
        max_events_per_session: how many events of each session are kept.

    Raises:
        ValueError: a limit is below 1.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)
    drops_oldest: ClassVar[bool] = True
    appends_head: ClassVar[bool] = True

    def __init__(
        self,
        state: MutableMapping[str, Any] | Callable[[], MutableMapping[str, Any]],
        *,
        state_key: str = DEFAULT_STATE_KEY,
        save: Save | None = None,
        max_sessions: int = _MAX_SESSIONS,
        max_events_per_session: int = _MAX_EVENTS_PER_SESSION,
    ) -> None:
        if max_sessions < 1 or max_events_per_session < 1:
            raise ValueError("max_sessions and max_events_per_session must be at least 1")
        self._state = state
        self._state_key = state_key
        self._save = save
        self._max_sessions = max_sessions
        self._max_events = max_events_per_session
        # Reads wait for a save, because a change must not be visible before it is acknowledged.
        self._lock = anyio.Lock()
        self._owners = _Owners()
        super().__init__()

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        async with self._lock:
            plain = self._data().sessions.get(session_id)
            return None if plain is None else plain_to_record(plain)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        async with self._lock:
            plains = sorted(self._data().sessions.values(), key=_created)
            page = slice_page(plains, _created, limit, cursor)
            return ListPage([plain_to_record(plain) for plain in page.items], page.next_cursor)

    async def update_session(self, session: SessionRecord, /) -> None:
        """Insert the record, or replace the one with its id. Drops the oldest session beyond the limit."""
        await self.save_session(session)

    async def claim_session(self, session_id: str, /) -> int:
        return await self._change(
            session_id,
            lambda data: data.raise_generation(session_id, _WRITERS_PER_SESSION * self._max_sessions),
        )

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        plain = record_to_plain(session)

        def save(data: ActorData) -> None:
            _check_generation(data, session.id, generation)
            data.set(data.sessions, session.id, plain)
            while len(data.sessions) > self._max_sessions:
                self._drop(data, min(data.sessions.values(), key=_created)["id"])

        await self._change(session.id, save)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        async with self._lock:
            page = slice_page(self._data().history(session_id), position, limit, cursor)
            return ListPage([plain_to_event(plain) for plain in page.items], page.next_cursor)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one with its id.

        Raises:
            PersistError: another event of the session has its index, or the state was not saved.
        """
        check_session(session_id, event)
        plain = event_to_plain(event)

        await self._change(session_id, lambda data: self._insert(data, event, plain))
        self._following.stored(session_id, [event])

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``: all of them or none.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: another session has an event with one of the ids, or the state was not saved.
        """
        for event in events:
            check_session(session_id, event)
        # Copies, because the caller may change the events while the state is saved.
        plains = [event_to_plain(event) for event in events]
        indexes = await self._change(
            session_id, lambda data: self._append(data, session_id, plains, generation)
        )
        for event in events:
            event.event_index = indexes[event.id]
        self._following.stored(session_id, events)

    async def append_sealed(
        self,
        session_id: str,
        events: Sequence[SessionEvent],
        head: SessionEvent,
        /,
        *,
        after: int,
        generation: int = UNFENCED,
    ) -> None:
        plains, plain_head = [event_to_plain(event) for event in events], event_to_plain(head)

        def append(data: ActorData) -> None:
            _check_generation(data, session_id, generation)
            ids = {event.id for event in events}
            known = {one["id"]: one["eventIndex"] for one in data.history(session_id) if one["id"] in ids}
            if known or data.last_index(session_id) != after:
                raise NotLastError(session_id, known)
            self._append(data, session_id, plains, generation)
            self._insert(data, head, plain_head)

        await self._change(session_id, append)
        self._following.stored(session_id, events)

    async def last_event_index(self, session_id: str, /) -> int:
        async with self._lock:
            return self._data().last_index(session_id)

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        if limit < 1:
            return []
        async with self._lock:
            return [plain_to_event(plain) for plain in self._data().history(session_id)[-limit:]]

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record and its events. Its writer is refused from then on."""

        def erase(data: ActorData) -> None:
            self._drop(data, session_id)
            if session_id in data.writers:
                data.raise_generation(session_id, _WRITERS_PER_SESSION * self._max_sessions)

        await self._change(session_id, erase)
        self._following.deleted(session_id)

    async def marks(self, session_ids: Collection[str], /) -> Mapping[str, Mark]:
        async with self._lock:
            data = self._data()
            return {one: Mark(data.last_index(one)) for one in session_ids}

    def _data(self) -> ActorData:
        state = self._state() if callable(self._state) else self._state
        return ActorData(state.get(self._state_key))

    async def _change(self, session_id: str, change: Callable[[ActorData], T]) -> T:
        """Change the state and save it; if that fails, also by a cancellation, restore the state."""
        async with self._lock:
            state = self._state() if callable(self._state) else self._state
            was_there = self._state_key in state
            data = ActorData(state.get(self._state_key))
            data.complete()
            try:
                result = change(data)
                state[self._state_key] = data.value
                if self._save is not None:
                    saved = self._save()
                    if inspect.isawaitable(saved):
                        await saved
            except BaseException as error:
                # A change must not be visible before it is acknowledged.
                data.undo()
                if was_there:
                    state[self._state_key] = data.value
                else:
                    state.pop(self._state_key, None)
                self._owners.forget()
                if isinstance(error, PersistError) or not isinstance(error, Exception):
                    raise
                raise PersistError(
                    "the actor's state was not saved, nothing was stored: "
                    f"try again once it can be ({error!r})",
                    session_id=session_id,
                ) from error
            return result

    def _append(
        self, data: ActorData, session_id: str, plains: Sequence[Plain], generation: int
    ) -> dict[str, int]:
        """Append events and return the index of each event of the session."""
        _check_generation(data, session_id, generation)
        self._check_owners(data, session_id, plains)
        history = data.history(session_id)
        last = data.last_index(session_id)
        indexes: dict[str, int] = {one["id"]: one["eventIndex"] for one in history}
        fresh: list[Plain] = []
        for plain in plains:
            if plain["id"] not in indexes:
                last += 1
                indexes[plain["id"]] = plain["eventIndex"] = last
                fresh.append(plain)
        if fresh:
            self._keep(data, session_id, [*history, *fresh], fresh)
        return indexes

    def _insert(self, data: ActorData, event: SessionEvent, plain: Plain) -> None:
        owner = self._owners.of(data).get(event.id)
        if owner is not None:
            kept = [one for one in data.history(owner) if one["id"] != event.id]
            data.set(data.events, owner, kept)
        history = data.history(event.session_id)
        at = bisect_left(history, (event.event_index, ""), key=position)
        if at < len(history) and history[at]["eventIndex"] == event.event_index:
            raise taken_index_error(event)
        history.insert(at, plain)
        self._keep(data, event.session_id, history, [plain])

    def _check_owners(self, data: ActorData, session_id: str, plains: Sequence[Plain]) -> None:
        owners = self._owners.of(data)
        for plain in plains:
            owner = owners.get(plain["id"], session_id)
            if owner != session_id:
                raise taken_id_error(plain["id"], session_id, owner)

    def _keep(self, data: ActorData, session_id: str, history: list[Plain], fresh: Sequence[Plain]) -> None:
        """Set a session's history, within the limits, which also apply to histories without a record."""
        if session_id not in data.events and len(data.events) >= 2 * self._max_sessions:
            self._drop(data, next(one for one in data.events if one not in data.sessions))
        data.set(data.events, session_id, history[-self._max_events :])
        self._owners.add(fresh, session_id)
        self._owners.remove(history[: -self._max_events])

    def _drop(self, data: ActorData, session_id: str) -> None:
        self._owners.remove(data.history(session_id))
        data.drop(data.sessions, session_id)
        data.drop(data.events, session_id)


class RivetSessionPersistDriver(StateSessionPersistDriver):
    """Keeps sessions in an actor's state, where the TypeScript SDK's Rivet driver keeps them.

    Args:
        context: the actor's context; its ``state`` is read at every call.
        state_key: the member of the state that belongs to the driver.
        save: called, and awaited, before a change is acknowledged (the actor's own ``save_state``).
        max_sessions: how many sessions are kept.
        max_events_per_session: how many events of each session are kept.

    Raises:
        ValueError: a limit is below 1.
    """

    def __init__(
        self,
        context: StatefulContext,
        *,
        state_key: str = DEFAULT_STATE_KEY,
        save: Save | None = None,
        max_sessions: int = _MAX_SESSIONS,
        max_events_per_session: int = _MAX_EVENTS_PER_SESSION,
    ) -> None:
        super().__init__(
            lambda: context.state,
            state_key=state_key,
            save=save,
            max_sessions=max_sessions,
            max_events_per_session=max_events_per_session,
        )


class _Owners:
    """The session of each event id, read again if the state is another object than before."""

    def __init__(self) -> None:
        self._by_event: dict[str, str] = {}
        self._value: object = None

    def of(self, data: ActorData) -> Mapping[str, str]:
        """Return the session of each event's id."""
        if self._value is not data.value:
            self._by_event = {
                plain["id"]: session_id for session_id, history in data.events.items() for plain in history
            }
            self._value = data.value
        return self._by_event

    def add(self, events: Sequence[Plain], session_id: str) -> None:
        """Add stored events."""
        self._by_event.update((plain["id"], session_id) for plain in events)

    def remove(self, events: Sequence[Plain]) -> None:
        """Remove events that were erased."""
        for plain in events:
            self._by_event.pop(plain["id"], None)

    def forget(self) -> None:
        """Read the state again at the next call."""
        self._value = None


def _created(plain: Plain) -> tuple[int, str]:
    return plain["createdAt"], plain["id"]


def _check_generation(data: ActorData, session_id: str, generation: int) -> None:
    if generation != UNFENCED and generation < data.writers.get(session_id, UNFENCED):
        raise SessionFencedError(session_id, generation)
