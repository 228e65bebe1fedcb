"""The driver interface: five methods, and declared capabilities with slower defaults built on them."""

from __future__ import annotations

import base64
import binascii
import enum
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self, TypeVar

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

if TYPE_CHECKING:
    from sandbox_agent.wire.sessions import SearchHit

__all__ = [
    "DEFAULT_LIST_LIMIT",
    "MAX_LIST_LIMIT",
    "UNFENCED",
    "Capability",
    "Keyset",
    "NotLastError",
    "SessionPersistDriver",
    "check_session",
    "decode_cursor",
    "encode_cursor",
    "normalize_limit",
]

T = TypeVar("T")
Item = TypeVar("Item")

DEFAULT_LIST_LIMIT = 100
# A page is held in memory; anything above this is a mistake and falls back to the default.
MAX_LIST_LIMIT = 10_000
# The generation of a writer that has not claimed the session.
UNFENCED = 0
# Sessions whose numbering is remembered; one that is forgotten is read again.
_REMEMBERED = 64
# How often this default polls for new events, in seconds.
_FOLLOW_INTERVAL = 0.1


class Capability(enum.Enum):
    """What a driver does beyond the five methods, natively."""

    APPEND = "append"
    TAIL = "tail"
    LAST_INDEX = "last_index"
    DELETE = "delete"
    FENCE = "fence"
    SEARCH = "search"
    FOLLOW = "follow"


class NotLastError(PersistError):
    """Events were not stored, because the session does not end where their writer expected.

    Attributes:
        known: the index of each of the events that the session has already.
    """

    session_id: str

    def __init__(self, session_id: str, known: Mapping[str, int] | None = None) -> None:
        super().__init__(
            f"nothing was stored, session '{session_id}' has events that its writer did not know: try again",
            session_id=session_id,
        )
        self.known: Mapping[str, int] = known or {}


class SessionPersistDriver(ABC):
    """Keeps session records and their events (see docs/custom-driver.md).

    A driver implements the first five methods. The others have defaults built on those; a driver that
    can do better overrides them and names them in ``capabilities``. Drivers are safe to use from many
    tasks of one event loop.

    Every method raises PersistError when the store fails; what it acknowledged (returned from) is kept.

    Attributes:
        capabilities: what it does natively.
        drops_oldest: whether it drops the oldest events, or sessions, beyond a limit.
        appends_head: whether ``append_sealed`` stores everything or nothing.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    drops_oldest: ClassVar[bool] = False
    appends_head: ClassVar[bool] = False
    _numberings: _Numberings | None = None

    @abstractmethod
    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        """Return the record, or None."""

    @abstractmethod
    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        """Return a page of records by (created_at, id), oldest first."""

    @abstractmethod
    async def update_session(self, session: SessionRecord, /) -> None:
        """Insert the record, or replace the one of that id."""

    @abstractmethod
    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by (event_index, id), oldest first."""

    @abstractmethod
    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id."""

    def cursor_after(self, event_index: int, /) -> str | None:
        """Return the cursor of ``list_events`` after that index, or None if the driver has none.

        Readers that begin in the middle use it; without it they read from the beginning. A driver whose
        cursors are those of ``encode_cursor`` returns ``encode_cursor(event_index + 1, "")``.
        """
        return None

    async def claim_session(self, session_id: str, /) -> int:
        """Become the session's only writer and return the generation to write with, above all before.

        Writers that claimed it before are refused from now on. A driver that does not declare
        Capability.FENCE returns UNFENCED and refuses no writer. The session need not be stored yet.
        """
        return UNFENCED

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        """``update_session`` by the session's writer.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
        """
        await self.update_session(session)

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``: contiguous, after the last one stored.

        The drivers allocate it in ``sql.log``, ``postgres.writing``, ``redis.scripts`` and ``memory``.

        All of them are kept when it returns; an event whose id is already stored in the session (a
        retry) keeps the index that it has and is not stored again. A native append keeps all of them or
        none; this default inserts one at a time, reads the whole session first, remembers the ids, and
        assumes that from then on no other writer stores events of the session.

        Args:
            session_id: the session of all the events.
            events: what is appended, in order.
            generation: what ``claim_session`` returned; UNFENCED writes without a check.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
        """
        if self._numberings is None:
            self._numberings = _Numberings()
        await self._numberings.of(session_id).append(self, session_id, events)

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
        """Append events that have their indexes already, and store ``head``, of which a session has one.

        For encryption, which binds an event to its index. This default stores one event at a time and then
        the head, and assumes that no other writer appends to the session at the same time.

        Args:
            session_id: the session of the events.
            events: at least one; their indexes are those after ``after``. The driver may keep the objects.
            head: replaces the one before. Its id is that of its (hidden) session. The driver may keep the
                object.
            after: the last index of the session.
            generation: as for ``append_events``.

        Raises:
            NotLastError: the session has another last index, or some of the events. Nothing is stored, or
                only the events before those.
            SessionFencedError: the session was claimed after that generation; nothing is stored.
        """
        if await self.last_event_index(session_id) != after:
            raise NotLastError(session_id)
        for event in events:
            # One at a time: one that is stored already, as in a retry, would move those after it.
            copy = event.copy()
            await self.append_events(session_id, [copy], generation=generation)
            if copy.event_index <= after:
                raise NotLastError(session_id, {event.id: copy.event_index})
            if copy.event_index != event.event_index:
                raise PersistError(
                    f"session '{session_id}' has two writers at the same time, which "
                    f"{type(self).__name__} does not keep apart: stop one of them, and restore the session "
                    "from a copy",
                    session_id=session_id,
                )
        await self.replace_head(session_id, head)

    async def find_head(self, session_id: str, head_id: str, /) -> SessionEvent | None:
        """Return the head that was stored with the events of a session; None: there is none.

        This default keeps it as the only event of the session ``head_id``.
        """
        page = await self.list_events(head_id, limit=1)
        return page.items[0] if page.items else None

    async def replace_head(self, session_id: str, head: SessionEvent, /) -> None:
        """Store the head of a session without events. The driver may keep the object."""
        await self.insert_event(head.session_id, head)

    async def last_event_index(self, session_id: str, /) -> int:
        """Return the highest event index of the session, 0 where it has none."""
        tail = await self.tail_events(session_id, limit=1)
        return tail[-1].event_index if tail else 0

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        """Return the newest ``limit`` events, oldest of them first; none for a limit below 1."""
        if limit < 1:
            return []
        tail: list[SessionEvent] = []
        read = partial(self.list_events, session_id, limit=max(limit, DEFAULT_LIST_LIMIT))
        async for events in all_pages(read):
            tail = [*tail, *events][-limit:]
        return tail

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record and its events; nothing happens if there is none.

        A driver that overrides this and leaves ``append_events`` as it is calls it, too: it forgets how the
        session's events were numbered.

        Raises:
            NotImplementedError: the driver does not declare Capability.DELETE.
        """
        if Capability.DELETE not in self.capabilities:
            raise NotImplementedError(f"{type(self).__name__} can't delete sessions: it declares no DELETE")
        if self._numberings is not None:
            self._numberings.forget(session_id)

    async def delete_sessions(self, session_ids: Sequence[str], /) -> None:
        """Erase several sessions that belong together, as ``delete_session`` does.

        For encryption, which keeps the head and the key of a session beside it. A driver with transactions
        erases all of them or none, in one step for readers; this default erases one after another. The last
        is the session itself.

        Raises:
            NotImplementedError: the driver does not declare Capability.DELETE.
        """
        for session_id in session_ids:
            await self.delete_session(session_id)

    async def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events after an index and those that are stored later, by any program.

        Each is delivered once, in order. It continues until the caller ends it (``contextlib.aclosing``), the
        driver is closed or the session is deleted; this default polls ten times a second, and
        does not end by itself when the driver is closed.
        """
        last = after
        seen = False
        while True:
            read = partial(self.list_events, session_id)
            async with aclosing(all_pages(read, self.cursor_after(last))) as pages:
                async for events in pages:
                    seen = seen or bool(events)
                    for event in events:
                        if event.event_index > last:
                            last = event.event_index
                            yield event
            if seen and Capability.DELETE in self.capabilities and await self._is_gone(session_id):
                return
            await anyio.sleep(_FOLLOW_INTERVAL)

    async def _is_gone(self, session_id: str) -> bool:
        if await self.get_session(session_id) is not None:
            return False
        return not (await self.list_events(session_id, limit=1)).items

    async def search_events(
        self, query: str, /, *, session_id: str | None = None, limit: int | None = None
    ) -> list[SearchHit]:
        """Return where all words of the query are said or done, the newest first.

        The query is words, all of which must be in one text, and "phrases"; case and accents don't count and
        nothing in it is an error. A text is a user's prompt, a whole message of the agent's, or a tool call's
        title and output (``persist.folding``); of the hit, ``sequence`` and ``time`` are event index and
        ``created_at`` of its first event. Searched are the sessions whose record is stored. This default
        reads the whole history of each.

        Args:
            query: as a user types it.
            session_id: search this session only.
            limit: how many hits at most; 100 if it is None or out of range.
        """
        # Most programs never search.
        from sandbox_agent.persist.searching import search_by_reading

        return await search_by_reading(self, query, session_id, normalize_limit(limit))

    async def __aenter__(self) -> Self:
        """Return the driver."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close the driver."""
        await self.close()

    async def close(self) -> None:  # noqa: B027 - optional hook
        """Release what the driver opened itself, not what was passed in. Safe to call twice."""


class _Numbering:
    """Numbers one session's events, and knows which ids are stored.

    It reads the whole session once, and again after a failure, when it can't know what was stored. It
    assumes that no other writer appends to the session.
    """

    def __init__(self) -> None:
        self.lock: anyio.Lock = anyio.Lock()
        self._indexes: dict[str, int] | None = None
        self._last = 0

    async def append(
        self, store: SessionPersistDriver, session_id: str, events: Sequence[SessionEvent]
    ) -> None:
        """Set each event's index and insert it, one at a time; an id that is stored keeps its index."""
        async with self.lock:
            indexes = self._indexes or await self._read(store, session_id)
            # Until all of them are stored, what is stored is not known.
            self._indexes = None
            for event in events:
                if event.id in indexes:
                    event.event_index = indexes[event.id]
                    continue
                event.event_index = self._last + 1
                await store.insert_event(session_id, event)
                self._last = indexes[event.id] = event.event_index
            self._indexes = indexes

    async def _read(self, store: SessionPersistDriver, session_id: str) -> dict[str, int]:
        indexes: dict[str, int] = {}
        async for events in all_pages(partial(store.list_events, session_id)):
            indexes.update((event.id, event.event_index) for event in events)
        self._last = max(indexes.values(), default=0)
        return indexes


class _Numberings:
    """The numbering of each session, for the sessions used last."""

    def __init__(self) -> None:
        self._by_session: dict[str, _Numbering] = {}

    def of(self, session_id: str) -> _Numbering:
        """Return the session's numbering; one that is in use is never forgotten."""
        numbering = self._by_session.pop(session_id, None) or _Numbering()
        self._by_session[session_id] = numbering
        if len(self._by_session) > _REMEMBERED:
            idle = next((key for key, value in self._by_session.items() if not value.lock.locked()), None)
            if idle not in (None, session_id):
                del self._by_session[idle]
        return numbering

    def forget(self, session_id: str) -> None:
        """Read the session again before it is appended to."""
        self._by_session.pop(session_id, None)


class _ReadPage(Protocol[Item]):
    def __call__(self, *, cursor: str | None) -> Awaitable[ListPage[Item]]: ...


async def all_pages(read: _ReadPage[Item], cursor: str | None = None) -> AsyncGenerator[list[Item]]:
    """Iterate over the pages of a listing, from a cursor on."""
    while True:
        page = await read(cursor=cursor)
        yield page.items
        cursor = page.next_cursor
        if cursor is None:
            return


def check_session(session_id: str, event: SessionEvent) -> None:
    """Refuse an event of another session.

    Raises:
        PersistError: the event names another session than the caller.
    """
    if event.session_id != session_id:
        raise PersistError(
            f"event '{event.id}' was not stored: it names session '{event.session_id}', not '{session_id}'",
            session_id=session_id,
        )


class Keyset(NamedTuple):
    """Where a page begins: after ``(position, id)``, or after ``offset`` rows for a peer's cursor."""

    position: int
    id: str
    offset: int = 0


_CURSOR_PREFIX = "k"
# What a store's integer column holds.
_MAX_INTEGER = 2**63 - 1


def encode_cursor(position: int, row_id: str) -> str:
    """Return the opaque cursor of the row that a page ended with."""
    raw = f"{position}:{row_id}".encode(errors="surrogatepass")
    return _CURSOR_PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> Keyset | None:
    """Return where a listing continues, or None for its beginning.

    A cursor of the TypeScript drivers (a decimal offset) is understood; any other string means the
    beginning, as in their ``parseCursor``.
    """
    if not cursor:
        return None
    if cursor.startswith(_CURSOR_PREFIX):
        body = cursor[len(_CURSOR_PREFIX) :]
        try:
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode(errors="surrogatepass")
            position, _, row_id = raw.partition(":")
            keyset = Keyset(int(position), row_id)
        except (binascii.Error, UnicodeError, ValueError):
            return None
        return keyset if abs(keyset.position) <= _MAX_INTEGER else None
    if cursor.isascii() and cursor.isdigit() and len(cursor) <= len(str(_MAX_INTEGER)):
        offset = min(int(cursor), _MAX_INTEGER)
        return Keyset(0, "", offset) if offset else None
    return None


def normalize_limit(limit: int | None) -> int:
    """Return a usable page size: non-positive or absurd values fall back to the default."""
    if limit is None or not 1 <= limit <= MAX_LIST_LIMIT:
        return DEFAULT_LIST_LIMIT
    return limit


def record_position(record: SessionRecord) -> tuple[int, str]:
    """Return the place of a record in the order of ``list_sessions``."""
    return record.created_at, record.id


def event_position(event: SessionEvent) -> tuple[int, str]:
    """Return the place of an event in the order of ``list_events``."""
    return event.event_index, event.id


def make_page(found: list[T], size: int, position: Callable[[T], tuple[int, str]]) -> ListPage[T]:
    """Return a page of what was found, which is one item more than the page if there are more."""
    page = found[:size]
    return ListPage(page, encode_cursor(*position(page[-1])) if len(found) > size else None)


def slice_page(
    items: Sequence[T], position: Callable[[T], tuple[int, str]], limit: int | None, cursor: str | None
) -> ListPage[T]:
    """Return a page of all items, which are in the order of their positions."""
    size = normalize_limit(limit)
    after = decode_cursor(cursor)
    if after is None:
        start = 0
    elif after.offset:
        start = after.offset
    else:
        start = bisect_right(items, (after.position, after.id), key=position)
    return make_page(list(items[start : start + size + 1]), size, position)


def own_error(error: BaseException, session_id: str) -> BaseException:
    """Return an error for one of several callers, which raises it with a traceback of its own."""
    if not isinstance(error, PersistError):
        return error
    own = PersistError(str(error), session_id=session_id)
    own.__cause__ = error.__cause__
    return own


def taken_id_error(event_id: str, session_id: str, owner: str) -> PersistError:
    """Return the error of an event whose id another session's event has."""
    return PersistError(
        f"event '{event_id}' was not stored: its id is taken by an event of session '{owner}'",
        session_id=session_id,
    )


def taken_index_error(event: SessionEvent, cause: object = None) -> PersistError:
    """Return the error of an event whose index another event of the session has."""
    return PersistError(
        f"event '{event.id}' was not stored: session '{event.session_id}' has another event with index "
        f"{event.event_index}" + ("" if cause is None else f" ({cause})"),
        session_id=event.session_id,
    )


def not_json_error(session_id: str, cause: Exception) -> PersistError:
    """Return the error of a record with a value that can't be written as JSON."""
    return PersistError(
        f"session '{session_id}' can't be stored, it holds a value that is not JSON: {cause}",
        session_id=session_id,
    )
