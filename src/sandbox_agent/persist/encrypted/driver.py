"""A driver over any other one, which then holds ciphertext."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    SessionPersistDriver,
    check_session,
    decode_cursor,
    normalize_limit,
)
from sandbox_agent.persist.encrypted.cipher import MasterKey, MasterKeys, SessionCipher
from sandbox_agent.persist.encrypted.forms import (
    blank,
    event_seal,
    is_blank,
    open_event,
    open_record,
    record_seal,
    seal_event,
    seal_record,
)
from sandbox_agent.persist.encrypted.keys import KEY_PREFIX, SessionKey, SessionKeys
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

__all__ = ["EncryptedSessionPersistDriver"]

T = TypeVar("T")

# Above this, sealing and opening goes to a thread: the event loop has others to serve. In bytes.
_IN_LOOP: Final = 512 * 1024
# How often a write is done again because the session was erased, or its key replaced, under it.
_TRIES: Final = 10
# Rows that are looked at to see whether a listing goes on.
_PEEK: Final = 4


class EncryptedSessionPersistDriver(SessionPersistDriver):
    """Encrypts what is said in sessions before another driver stores it.

    Sealed (AES-256-GCM) are the payloads of events, and ``session_init``, ``config_options`` and ``modes``
    of records. Readable remain ids, agents, times, senders, indexes, sizes and which sandbox. Each session
    has a random key, which the master key wraps; it is kept in the store, in a hidden record.

    What was changed in the store, or moved to another event or session, raises PersistError, and so does
    a wrong master key. That events are missing, or stand in another order, nobody can tell.

    It can do what the inner driver can, except that searches read and decrypt everything.

    Args:
        inner: where the ciphertext is kept; it must hold nothing that isn't encrypted.
        key: the master key: 32 random bytes, or base64 text of them.
        old_keys: master keys that still wrap session keys.
        close_inner: ``close`` closes the inner driver, too.

    Raises:
        InvalidRequestError: a key is something else.
        ImportError: the extra ``encryption`` is not installed.
    """

    def __init__(
        self,
        inner: SessionPersistDriver,
        *,
        key: MasterKey,
        old_keys: Sequence[MasterKey] = (),
        close_inner: bool = False,
    ) -> None:
        self.inner: SessionPersistDriver = inner
        # The class declares them for drivers that are alike; here they are those of the inner one.
        vars(self)["capabilities"] = inner.capabilities - {Capability.SEARCH}
        self._keys = SessionKeys(inner, MasterKeys(key, old_keys))
        self._close_inner = close_inner
        self._closed = False
        self._following: set[anyio.CancelScope] = set()

    # Records.

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        """Return the record, or None."""
        if session_id.startswith(KEY_PREFIX):
            return None
        for _ in range(_TRIES):
            record = await self.inner.get_session(session_id)
            if record is None or is_blank(record):
                return None
            sealed = record_seal(record)
            found = await self._keys.find(session_id)
            if found is not None:
                if found.cipher is None or sealed.key_id in found.gone:
                    return None
                if sealed.key_id == found.cipher.key_id:
                    return open_record(found.cipher, record, sealed)
            # Erased, or erased and made anew, between the two reads; otherwise the key is lost.
        raise _keyless(f"session '{session_id}'", session_id)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        """Return a page of records by (created_at, id), oldest first."""
        size = normalize_limit(limit)
        after = decode_cursor(cursor)
        if after is not None and after.offset:
            # A peer's cursor counts rows; here hidden ones are between them.
            cursor = await self._skip_sessions(after.offset)
            if cursor is None:
                return ListPage([])
        records: list[SessionRecord] = []
        keys: dict[str, SessionKey] = {}
        while True:
            # Never more than there is room for: a cursor is only known for where a page ends.
            page = await self.inner.list_sessions(limit=size - len(records), cursor=cursor)
            records += await self._open_listed(page.items, keys)
            cursor = page.next_cursor
            if cursor is None:
                return ListPage(records)
            if len(records) == size:
                return ListPage(records, await self._if_any(cursor))

    async def update_session(self, session: SessionRecord, /) -> None:
        """Insert the record, or replace the one of that id.

        Raises:
            PersistError: it holds a value that is not JSON, or the store failed.
        """
        await self.save_session(session)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        """``update_session`` by the session's writer."""
        _check_id(session.id)
        for _ in range(_TRIES):
            cipher = await self._keys.obtain(session.id, session.created_at)
            sealed = seal_record(cipher, session)
            if generation != UNFENCED:
                await self.inner.save_session(sealed, generation=generation)
                return
            await self.inner.update_session(sealed)
            if await self._is_current(session.id, cipher):
                return
            await self._settle(session.id, cipher, [])
        raise _restless(session.id)

    # Events.

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by (event_index, id), oldest first."""
        while True:
            page = await self.inner.list_events(session_id, limit=limit, cursor=cursor)
            events = await self._open_events(session_id, page.items)
            cursor = page.next_cursor
            # A page may be all of events that were erased and could not be deleted.
            if events or cursor is None:
                return ListPage(events, cursor)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id."""
        _check_id(session_id)
        check_session(session_id, event)
        cipher = await self._keys.obtain(session_id)
        (sealed,) = await _apart([event], lambda event: seal_event(cipher, event))
        await self.inner.insert_event(session_id, sealed)
        await self._settle(session_id, cipher, [event])

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``, as the inner driver does."""
        _check_id(session_id)
        for event in events:
            check_session(session_id, event)
        cipher = await self._keys.obtain(session_id)
        sealed = await _apart(events, lambda event: seal_event(cipher, event))
        if generation == UNFENCED:
            await self.inner.append_events(session_id, sealed)
        else:
            await self.inner.append_events(session_id, sealed, generation=generation)
        for event, stored in zip(events, sealed, strict=True):
            event.event_index = stored.event_index
        if generation == UNFENCED:
            await self._settle(session_id, cipher, events)

    def cursor_after(self, event_index: int, /) -> str | None:
        """Return the inner driver's cursor behind that index."""
        return self.inner.cursor_after(event_index)

    async def last_event_index(self, session_id: str, /) -> int:
        """Return the highest event index of the session, 0 where it has none."""
        last = await self.inner.last_event_index(session_id)
        if last and await self._is_erased(session_id):
            return 0
        return last

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        """Return the newest ``limit`` events, oldest of them first."""
        return await self._open_events(session_id, await self.inner.tail_events(session_id, limit=limit))

    async def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events behind an index and those that are stored meanwhile, by whomever."""
        async with aclosing(self.inner.follow_events(session_id, after=after)) as events:
            while not self._closed:
                event: SessionEvent | None = None
                with anyio.CancelScope() as scope:
                    self._following.add(scope)
                    try:
                        event = await anext(events, None)
                    finally:
                        self._following.discard(scope)
                if event is None:
                    return
                known = self._keys.known(session_id)
                sealed = event_seal(event)
                # An event that comes is one that was just written: the store need not be asked each time.
                if known is not None and known.key_id == sealed.key_id:
                    yield open_event(known, event, sealed)
                    continue
                for opened in await self._open_events(session_id, [event]):
                    yield opened

    # The writer, and the end.

    async def claim_session(self, session_id: str, /) -> int:
        """Become the session's only writer, as with the inner driver."""
        _check_id(session_id)
        generation = await self.inner.claim_session(session_id)
        # What others did before is in the store; what they do from now on is refused.
        self._keys.forget(session_id)
        return generation

    async def delete_session(self, session_id: str, /) -> None:
        """Destroy the session's key and erase its record and events.

        Raises:
            NotImplementedError: the inner driver can't delete; ``erase`` does what can be done.
        """
        if Capability.DELETE not in self.capabilities:
            raise NotImplementedError(
                f"{type(self.inner).__name__} can't delete sessions: erase() destroys the key of one"
            )
        await self.erase(session_id)

    async def erase(self, session_id: str, /) -> None:
        """Destroy the session's key, so that nobody can read it again, and delete it where that is possible.

        Its writer is refused from then on where the inner driver knows generations. Nothing happens where
        there is no such session; an erasure that was interrupted ends when it is called again.
        """
        _check_id(session_id)
        if Capability.FENCE in self.capabilities:
            await self.inner.claim_session(session_id)
        record = await self.inner.get_session(session_id)
        if Capability.DELETE not in self.capabilities:
            await self._keys.destroy(session_id)
            if record is not None:
                await self.inner.update_session(blank(session_id, record.created_at))
            return
        if record is not None and not is_blank(record):
            # From here on it is gone for readers, whatever happens to this process.
            await self.inner.update_session(blank(session_id, record.created_at))
        await self._keys.destroy(session_id)
        await self.inner.delete_session(KEY_PREFIX + session_id)
        await self.inner.delete_session(session_id)
        self._keys.forget(session_id)

    async def rotate_keys(self) -> int:
        """Wrap the keys of all sessions with ``key`` that one of ``old_keys`` wraps; return how many.

        Payloads are not touched, and writers go on meanwhile. Interrupted, it goes on where it was when it
        is called again; two at once do no harm. When it has returned, the old keys are no longer needed.

        Raises:
            PersistError: a session's key is wrapped by a master key that was not given (the others are
                wrapped anew), or the store failed.
        """
        return await self._keys.rotate()

    async def close(self) -> None:
        """End the followers; the inner driver is closed by who made it, unless ``close_inner`` was given."""
        self._closed = True
        for scope in list(self._following):
            scope.cancel()
        if self._close_inner:
            await self.inner.close()

    # Reading.

    async def _open_listed(
        self, items: list[SessionRecord], keys: dict[str, SessionKey]
    ) -> list[SessionRecord]:
        for record in items:
            if record.id.startswith(KEY_PREFIX):
                keys[record.id.removeprefix(KEY_PREFIX)] = self._keys.read(record)
        opened: list[SessionRecord] = []
        for record in items:
            if record.id.startswith(KEY_PREFIX) or is_blank(record):
                continue
            sealed = record_seal(record)
            found = keys.get(record.id)
            if found is not None and found.cipher is not None and found.cipher.key_id == sealed.key_id:
                opened.append(open_record(found.cipher, record, sealed))
                continue
            again = await self.get_session(record.id)
            if again is not None:
                opened.append(again)
        return opened

    async def _if_any(self, cursor: str) -> str | None:
        """Return the cursor if a session is behind it."""
        ahead: str | None = cursor
        while ahead is not None:
            page = await self.inner.list_sessions(limit=_PEEK, cursor=ahead)
            if await self._open_listed(page.items, {}):
                return cursor
            ahead = page.next_cursor
        return None

    async def _skip_sessions(self, count: int) -> str | None:
        cursor: str | None = None
        while count > 0:
            page = await self.inner.list_sessions(limit=min(count, 500), cursor=cursor)
            count -= len(await self._open_listed(page.items, {}))
            cursor = page.next_cursor
            if cursor is None:
                return None
        return cursor

    async def _open_events(self, session_id: str, events: Sequence[SessionEvent]) -> list[SessionEvent]:
        if not events:
            return []
        found = await self._keys.find(session_id)
        if found is None:
            if await self._is_erased(session_id):
                return []
            event_seal(events[0])
            raise _keyless(f"the events of session '{session_id}'", session_id)
        cipher, gone = found.cipher, found.gone
        if cipher is None:
            return []

        def opened(event: SessionEvent) -> SessionEvent | None:
            sealed = event_seal(event)
            if sealed.key_id in gone:
                return None
            if sealed.key_id != cipher.key_id:
                raise _keyless(f"event '{event.id}' of session '{session_id}'", session_id)
            return open_event(cipher, event, sealed)

        return [event for event in await _apart(events, opened) if event is not None]

    async def _is_erased(self, session_id: str) -> bool:
        """Whether the key was destroyed, or the erasure is under way, or nothing was ever there."""
        found = await self._keys.find(session_id)
        if found is not None:
            return found.cipher is None
        record = await self.inner.get_session(session_id)
        if record is not None:
            return is_blank(record)
        return not (await self.inner.list_events(session_id, limit=1)).items

    # Writing without a claim: nobody is refused, so what was written is looked at again.

    async def _is_current(self, session_id: str, cipher: SessionCipher) -> bool:
        found = await self._keys.find(session_id)
        if found is not None and found.cipher is not None and found.cipher.key_id == cipher.key_id:
            return True
        self._keys.forget(session_id)
        return False

    async def _settle(self, session_id: str, cipher: SessionCipher, written: Sequence[SessionEvent]) -> None:
        """Seal again what stands under a key that is no longer the session's.

        It was erased while we wrote to it: only what was just written is to live. Or another process, which
        can't be refused, has replaced the key: all that we wrote is.
        """
        ids = {event.id for event in written}
        for _ in range(_TRIES):
            if await self._is_current(session_id, cipher):
                return
            current = await self._keys.obtain(session_id)
            found = await self._keys.find(session_id)
            erased = found is None or cipher.key_id in found.gone
            if not erased:
                await self._seal_record_again(session_id, cipher, current)
            cursor: str | None = None
            while True:
                page = await self.inner.list_events(session_id, cursor=cursor)
                for event in page.items:
                    sealed = event_seal(event)
                    if sealed.key_id == cipher.key_id and (event.id in ids or not erased):
                        plain = open_event(cipher, event, sealed)
                        await self.inner.insert_event(session_id, seal_event(current, plain))
                cursor = page.next_cursor
                if cursor is None:
                    break
            cipher = current
        raise _restless(session_id)

    async def _seal_record_again(self, session_id: str, old: SessionCipher, new: SessionCipher) -> None:
        record = await self.inner.get_session(session_id)
        if record is None or is_blank(record):
            return
        sealed = record_seal(record)
        if sealed.key_id == old.key_id:
            await self.inner.update_session(seal_record(new, open_record(old, record, sealed)))


async def _apart(events: Sequence[SessionEvent], work: Callable[[SessionEvent], T]) -> list[T]:
    """Return what ``work`` makes of each event; many bytes are worked on in a thread."""
    if sum(len(event.payload_json) for event in events) <= _IN_LOOP:
        return [work(event) for event in events]
    return await anyio.to_thread.run_sync(lambda: [work(event) for event in events])


def _check_id(session_id: str) -> None:
    if session_id.startswith(KEY_PREFIX):
        raise PersistError(
            f"'{session_id}' can't be a session of an encrypted store: ids that begin with '{KEY_PREFIX}' "
            "are those of keys, choose another",
            session_id=session_id,
        )
    try:
        session_id.encode()
    except UnicodeEncodeError as error:
        raise PersistError(
            f"{session_id!r} can't be a session of an encrypted store: it has half of a surrogate pair, "
            "choose another id",
            session_id=session_id,
        ) from error


def _keyless(what: str, session_id: str) -> PersistError:
    return PersistError(
        f"{what} can't be read: its key is not in the store; restore the record '{KEY_PREFIX}{session_id}' "
        "from a copy of the store",
        session_id=session_id,
    )


def _restless(session_id: str) -> PersistError:
    return PersistError(
        f"session '{session_id}' could not be written: it was erased again and again meanwhile, try again",
        session_id=session_id,
    )
