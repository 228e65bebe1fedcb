"""Copy or move sessions from one store into another. An interrupted run can be repeated."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from operator import attrgetter
from typing import Final

import anyio
import msgspec

from sandbox_agent.errors import InvalidRequestError, PersistError, SessionNotFoundError
from sandbox_agent.persist.base import Capability, SessionPersistDriver, all_pages
from sandbox_agent.persist.transfer.history import (
    SessionWriter,
    for_each_page,
    raise_first_error,
    read_events,
)
from sandbox_agent.wire.records import SessionEvent, SessionRecord

__all__ = ["Moved", "Total", "copy_sessions", "list_all_sessions", "measure"]

# Concurrent sessions: small ones then share commits.
_AT_ONCE: Final = 8
_PROBE: Final = "~probe:"
_content: Final = attrgetter("payload_json", "id", "event_index", "created_at", "connection_id", "sender")


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
    async with aclosing(all_pages(partial(source.list_sessions, limit=500))) as pages:
        async for records in pages:
            for record in records:
                yield record


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
    send, receive = anyio.create_memory_object_stream[SessionRecord](0)
    job = _Job(source, target, moved, on_progress, delete=delete, verify=verify)

    async def work() -> None:
        async for record in receive:
            await job.copy(record)

    with raise_first_error(), receive:
        async with anyio.create_task_group() as group:
            for _ in range(_AT_ONCE):
                group.start_soon(work)
            async with send, aclosing(_chosen(source, session_ids)) as records:
                async for record in records:
                    await send.send(record)
    if delete and session_ids is None and moved.deleted and (await source.list_sessions(limit=1)).items:
        # They were created meanwhile, or a listing skipped them because rows were deleted.
        more = await copy_sessions(source, target, delete=True, verify=verify, on_progress=on_progress)
        moved.sessions += more.sessions
        moved.events += more.events
        moved.stored += more.stored
        moved.deleted += more.deleted
    return moved


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
        await writer.begin(record)
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
        if writer.given is None and writer.last is not None and cursor is not None:
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
        async with aclosing(read_events(self._target, session_id)) as theirs:

            async def compare(events: list[SessionEvent]) -> None:
                for event in events:
                    other = await anext(theirs, None)
                    if other is None or _content(event) != _content(other):
                        raise _difference_error(
                            session_id, f"event {event.event_index} ('{event.id}') is not the same"
                        )

            await for_each_page(self._source, session_id, compare)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._moved)


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
