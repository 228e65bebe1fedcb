"""Copy or move sessions from one store into another. An interrupted run can be repeated."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Final

import anyio
import msgspec

from sandbox_agent.errors import InvalidRequestError, PersistError, SessionNotFoundError
from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.persist.transfer.writer import SessionWriter
from sandbox_agent.wire.records import SessionEvent, SessionRecord

__all__ = ["Moved", "Total", "copy_sessions", "for_each_page", "list_all_sessions", "measure"]

# Concurrent sessions: small ones then share commits.
_AT_ONCE: Final = 8
# The size of a page of events in memory, in bytes and events.
_PAGE_BYTES: Final = 4 * 1024 * 1024
_PAGE_EVENTS: Final = 2_000
_FIRST_PAGE: Final = 200
_PROBE: Final = "~probe:"


class Total(msgspec.Struct):
    """The amount to copy: the number of sessions, and the sum of their last indexes."""

    sessions: int = 0
    indexes: int = 0


class Moved(msgspec.Struct):
    """The progress and the result of a run.

    Attributes:
        sessions: how many sessions are in the target now.
        events: how many of their events this run read. It does not read again what an earlier run copied.
        stored: how many of the events this run stored.
        deleted: how many sessions were deleted in the source.
        indexes: the progress, to compare with ``Total.indexes``.
    """

    sessions: int = 0
    events: int = 0
    stored: int = 0
    deleted: int = 0
    indexes: int = 0


OnProgress = Callable[[Moved], None]


async def list_all_sessions(source: SessionPersistDriver) -> AsyncGenerator[SessionRecord]:
    """Iterate over all records of a store, oldest first."""
    cursor: str | None = None
    while True:
        page = await source.list_sessions(limit=500, cursor=cursor)
        for record in page.items:
            yield record
        cursor = page.next_cursor
        if cursor is None:
            return


async def measure(source: SessionPersistDriver, session_ids: Iterable[str] | None = None) -> Total:
    """Return the amount to copy.

    Raises:
        SessionNotFoundError: the source does not have one of the sessions.
    """
    total = Total()
    async with aclosing(_chosen(source, session_ids)) as records:
        async for record in records:
            total.sessions += 1
            total.indexes += max(0, await source.last_event_index(record.id))
    return total


async def for_each_page(
    source: SessionPersistDriver,
    session_id: str,
    use: Callable[[list[SessionEvent]], Awaitable[None]],
    *,
    cursor: str | None = None,
) -> None:
    """Await ``use`` for each page of a session's events, while the next page is read.

    A page has some megabytes, whatever the size of its events. At most three pages are in memory.
    """
    send, receive = anyio.create_memory_object_stream[list[SessionEvent]](0)
    failure: Exception | None = None

    async def read() -> None:
        nonlocal failure
        position, size = cursor, _FIRST_PAGE
        try:
            async with send:
                while True:
                    page = await source.list_events(session_id, limit=size, cursor=position)
                    await send.send(page.items)
                    position = page.next_cursor
                    if position is None:
                        return
                    length = sum(len(event.payload_json) for event in page.items)
                    size = max(1, min(_PAGE_EVENTS, _PAGE_BYTES * len(page.items) // max(1, length)))
        except Exception as error:  # noqa: BLE001 - the caller raises it
            failure = error

    with send, receive:
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            try:
                async for page in receive:
                    await use(page)
            except Exception as error:  # noqa: BLE001 - raised after the group, not in an exception group
                failure = error
                group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def copy_sessions(
    source: SessionPersistDriver,
    target: SessionPersistDriver,
    *,
    session_ids: Iterable[str] | None = None,
    delete: bool = False,
    verify: bool = False,
    on_progress: OnProgress | None = None,
) -> Moved:
    """Copy sessions with their events, ids, indexes and bytes into another store.

    Rows that the target has are not copied again: an interrupted run continues when it is called again, and
    concurrent runs are safe. Each session is checked when it is copied: its record, its last event, and with
    ``verify`` every byte.

    Args:
        source: the store to read.
        target: the store to write.
        session_ids: the sessions; None: all that the source lists.
        delete: delete each session in the source after the check. If the source fences writers, its writer is
            refused first, and what it wrote meanwhile is copied too.
        verify: compare every event.
        on_progress: called now and then with the progress.

    Raises:
        SessionNotFoundError: the source does not have one of the sessions.
        PersistError: the target has another history of a session, or a store failed. Copied rows stay.
        InvalidRequestError: ``delete`` with a store that can't delete, or both are the same store.
    """
    if delete:
        await _refuse_same_store(source, target)
    moved = Moved()
    failure: Exception | None = None
    send, receive = anyio.create_memory_object_stream[SessionRecord](0)
    job = _Job(source, target, moved, on_progress, delete=delete, verify=verify)

    async def work() -> None:
        nonlocal failure
        try:
            async for record in receive:
                await job.copy(record)
        except Exception as error:  # noqa: BLE001 - raised after the group, not in an exception group
            failure = failure or error
            group.cancel_scope.cancel()

    with send, receive:
        async with anyio.create_task_group() as group:
            for _ in range(_AT_ONCE):
                group.start_soon(work)
            try:
                async with aclosing(_chosen(source, session_ids)) as records:
                    async for record in records:
                        await send.send(record)
                send.close()
            except Exception as error:  # noqa: BLE001 - raised after the group, not in an exception group
                failure = failure or error
                group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if delete and session_ids is None and moved.deleted and (await source.list_sessions(limit=1)).items:
        # They were created meanwhile, or a listing skipped them because rows were deleted.
        await _move_rest(source, target, moved, verify=verify, on_progress=on_progress)
    return moved


async def _move_rest(
    source: SessionPersistDriver,
    target: SessionPersistDriver,
    moved: Moved,
    *,
    verify: bool,
    on_progress: OnProgress | None,
) -> None:
    more = await copy_sessions(source, target, delete=True, verify=verify, on_progress=on_progress)
    moved.sessions += more.sessions
    moved.events += more.events
    moved.stored += more.stored
    moved.deleted += more.deleted


class _Job:
    """Copies, checks and deletes sessions."""

    def __init__(
        self,
        source: SessionPersistDriver,
        target: SessionPersistDriver,
        moved: Moved,
        on_progress: OnProgress | None,
        *,
        delete: bool,
        verify: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._moved = moved
        self._on_progress = on_progress
        self._delete = delete
        self._verify = verify

    async def copy(self, record: SessionRecord) -> None:
        """Copy a session, check it, and delete it in the source if requested."""
        reached = await self._copy(record, 0)
        if not self._delete:
            await self._check(record.id, reached)
        else:
            # From here on its writer is refused. What it added before is copied too.
            await self._source.claim_session(record.id)
            last = await self._source.get_session(record.id)
            if last is None:
                # Another run has moved it already.
                return
            await self._copy(last, reached)
            await self._check(record.id, await self._source.last_event_index(record.id), last)
            await self._source.delete_session(record.id)
            self._moved.deleted += 1
        self._moved.sessions += 1
        self._report()

    async def _copy(self, record: SessionRecord, reached: int) -> int:
        """Copy the missing rows and return the last index."""
        writer = await SessionWriter.open(self._target, record.id)
        if writer.last is None and await self._target.get_session(record.id) is None:
            # Stored first, so that a session whose transfer is interrupted is visible.
            await self._target.update_session(record)
        cursor = None if writer.last is None else self._source.cursor_after(writer.last - 1)

        async def use(events: list[SessionEvent]) -> None:
            nonlocal reached
            before = writer.stored
            await writer.write(events)
            self._moved.events += len(events)
            self._moved.stored += writer.stored - before
            if events and events[-1].event_index > reached:
                self._moved.indexes += events[-1].event_index - reached
                reached = events[-1].event_index
            self._report()

        await for_each_page(self._source, record.id, use, cursor=cursor)
        if writer.seen == 0 and writer.last is not None and cursor is not None:
            # The target is ahead of the source: it must contain the source's last event.
            await writer.write(await self._source.tail_events(record.id, limit=1))
        await writer.finish(record)
        return reached

    async def _check(self, session_id: str, last: int, record: SessionRecord | None = None) -> None:
        there = await self._target.last_event_index(session_id)
        if there < last:
            raise _difference_error(
                session_id, f"it ends with event {last} in the source and {there} in the target"
            )
        stored = await self._target.get_session(session_id)
        if stored is None or (record is not None and there == last and stored != record):
            raise _difference_error(session_id, "its record is not the same")
        if self._verify:
            await self._compare_all(session_id)

    async def _compare_all(self, session_id: str) -> None:
        """Compare every event of the source with the target, which may have more events."""
        theirs = _Reader(self._target, session_id)

        async def compare(events: list[SessionEvent]) -> None:
            for event in events:
                other = await theirs.next()
                if other is None or not _is_same(event, other):
                    raise _difference_error(
                        session_id, f"event {event.event_index} ('{event.id}') is not the same"
                    )

        await for_each_page(self._source, session_id, compare)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._moved)


class _Reader:
    """Reads a session's events one at a time."""

    def __init__(self, driver: SessionPersistDriver, session_id: str) -> None:
        self._driver = driver
        self._session_id = session_id
        self._page: deque[SessionEvent] = deque()
        self._cursor: str | None = None
        self._began = False

    async def next(self) -> SessionEvent | None:
        """Return the next event, or None at the end."""
        while not self._page:
            if self._began and self._cursor is None:
                return None
            page = await self._driver.list_events(self._session_id, limit=_FIRST_PAGE, cursor=self._cursor)
            self._page.extend(page.items)
            self._began, self._cursor = True, page.next_cursor
        return self._page.popleft()


def _is_same(one: SessionEvent, other: SessionEvent) -> bool:
    return (
        one.payload_json == other.payload_json
        and one.id == other.id
        and one.event_index == other.event_index
        and one.created_at == other.created_at
        and one.connection_id == other.connection_id
        and one.sender == other.sender
    )


def _difference_error(session_id: str, how: str) -> PersistError:
    return PersistError(
        f"session '{session_id}' is not the same in both stores: {how}; it was deleted in neither, "
        "stop its writer and try again",
        session_id=session_id,
    )


async def _chosen(
    source: SessionPersistDriver, session_ids: Iterable[str] | None
) -> AsyncGenerator[SessionRecord]:
    if session_ids is None:
        async with aclosing(list_all_sessions(source)) as records:
            async for record in records:
                yield record
        return
    for session_id in session_ids:
        record = await source.get_session(session_id)
        if record is None:
            raise SessionNotFoundError(session_id)
        yield record


async def _refuse_same_store(source: SessionPersistDriver, target: SessionPersistDriver) -> None:
    """Raise InvalidRequestError if both drivers use one store, or one of them can't delete.

    Deleting a session in the source would then delete it in the target. Two URLs may name one store, so an
    event is stored in the target and looked up in the source.
    """
    for driver, which in ((source, "source"), (target, "target")):
        if Capability.DELETE not in driver.capabilities:
            raise InvalidRequestError(
                f"the {which} store can't delete sessions: keep them in the source (--keep)"
            )
    # An event without a record is in no listing, even if this process is killed here.
    name = _PROBE + secrets.token_hex(8)
    await target.insert_event(name, SessionEvent(name, 1, name, 0, "", "client", b"{}"))
    try:
        seen = bool((await source.list_events(name)).items)
    except PersistError:
        # The same rows, encrypted by one of the two.
        seen = True
    finally:
        await target.delete_session(name)
    if seen:
        raise InvalidRequestError("source and target are the same store: choose another target")
