"""A driver that encrypts what another driver stores."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    SessionPersistDriver,
    all_pages,
    check_session,
    decode_cursor,
    normalize_limit,
)
from sandbox_agent.persist.encrypted.chain import HEAD_PREFIX, Break, Head, Place, Stored, walk
from sandbox_agent.persist.encrypted.chains import (
    READS,
    Findings,
    SessionChains,
    broken_error,
    in_thread_if_large,
)
from sandbox_agent.persist.encrypted.cipher import MasterKey, MasterKeys, SessionCipher
from sandbox_agent.persist.encrypted.forms import (
    is_blank,
    make_blank,
    open_event,
    open_record,
    read_sealed_event,
    read_sealed_record,
    seal_event,
    seal_record,
)
from sandbox_agent.persist.encrypted.keys import KEY_PREFIX, SessionKey, SessionKeys
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

__all__ = ["EncryptedSessionPersistDriver"]

# Attempts of a write while the session is erased or its key is replaced.
_TRIES: Final = 10
# Rows that are read to find out whether a listing continues.
_PEEK: Final = 4


class EncryptedSessionPersistDriver(SessionPersistDriver):
    """Encrypts the messages of sessions before another driver stores them.

    Encrypted (AES-256-GCM) are the payloads of events, and ``session_init``, ``config_options`` and ``modes``
    of records. Ids, agents, times, senders, indexes, sizes and the sandbox remain readable. Each session has
    a random key, wrapped by the master key, in a hidden record of the store.

    A row that was changed, or moved to another event or session, raises PersistError, and so does a wrong
    master key. So do events that are missing, in another order, or older copies, where they are read: the
    appended events of a session are a chain, whose signed head is stored with each append. An older copy of a
    whole session shows only against a head that is kept elsewhere (``sandbox-agent sessions verify``).

    It has the capabilities of the inner driver, except that searches read and decrypt everything.

    Args:
        inner: stores the ciphertext. It must fence writers (``Capability.FENCE``), and must not contain rows
            that are not encrypted.
        key: the master key: 32 random bytes, or base64 text of them.
        old_keys: earlier master keys that still wrap session keys.
        close_inner: whether ``close`` also closes the inner driver.
        check_chain: whether a broken chain raises PersistError. False reads what is left of such a session.

    Raises:
        TypeError: the inner driver does not fence writers.
        InvalidRequestError: a key is invalid.
        ImportError: the extra ``encryption`` is not installed.
    """

    def __init__(
        self,
        inner: SessionPersistDriver,
        *,
        key: MasterKey,
        old_keys: Sequence[MasterKey] = (),
        close_inner: bool = False,
        check_chain: bool = True,
    ) -> None:
        if Capability.FENCE not in inner.capabilities:
            # Two processes could replace each other's key of a session.
            raise TypeError(
                f"{type(inner).__name__} can't be encrypted, it does not declare Capability.FENCE: use a "
                "driver that fences writers, or let this one do it (docs/custom-driver.md)"
            )
        self.inner: SessionPersistDriver = inner
        # Usually a class declares its capabilities. Here they are those of the inner driver.
        vars(self)["capabilities"] = inner.capabilities - {Capability.SEARCH}
        vars(self)["drops_oldest"] = inner.drops_oldest
        self._keys = SessionKeys(inner, MasterKeys(key, old_keys))
        self._chains = SessionChains(inner, self._keys, check=check_chain)
        self._close_inner = close_inner
        self._closed = False
        self._following: set[anyio.CancelScope] = set()

    # Records.

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        if session_id.startswith(KEY_PREFIX):
            return None
        for _ in range(_TRIES):
            record = await self.inner.get_session(session_id)
            if record is None or is_blank(record):
                return None
            sealed = read_sealed_record(record)
            found = await self._keys.find(session_id)
            if found is not None:
                if found.cipher is None or sealed.key_id in found.gone:
                    return None
                if sealed.key_id == found.cipher.key_id:
                    return open_record(found.cipher, record, sealed)
            # The session was erased between the two reads, and perhaps created again; or its key is lost.
        raise _missing_key_error(f"session '{session_id}'", session_id)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        size = normalize_limit(limit)
        after = decode_cursor(cursor)
        if after is not None and after.offset:
            # A cursor of the TypeScript SDK counts rows, and hidden ones are between them here.
            cursor = await self._skip_sessions(after.offset)
            if cursor is None:
                return ListPage([])
        records: list[SessionRecord] = []
        keys: dict[str, SessionKey] = {}
        while True:
            # Never more than the page has room for: a cursor is known only at the end of a page.
            page = await self.inner.list_sessions(limit=size - len(records), cursor=cursor)
            records += await self._open_listed(page.items, keys)
            cursor = page.next_cursor
            if cursor is None:
                return ListPage(records)
            if len(records) == size:
                return ListPage(records, await self._keep_if_any(cursor))

    async def update_session(self, session: SessionRecord, /) -> None:
        await self.save_session(session)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        _check_id(session.id)
        for _ in range(_TRIES):
            cipher = await self._keys.obtain(session.id, session.created_at)
            await self.inner.save_session(seal_record(cipher, session), generation=generation)
            if generation != UNFENCED or await self._is_current(session.id, cipher):
                return
        raise _conflict_error(session.id)

    # Events.

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        while True:
            read = partial(self.inner.list_events, session_id, limit=limit, cursor=cursor)
            page = await self._read_events(session_id, read, _start(cursor))
            cursor = page.next_cursor
            # A page may consist of events that were erased but could not be deleted.
            if page.items or cursor is None:
                return page

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event with its index, or replace the one of that id, as the inner driver does.

        A new one is bound to its index, and is in no chain: that it was removed can't be detected.
        """
        _check_id(session_id)
        check_session(session_id, event)
        cipher = await self._chains.insert(session_id, event)
        await self._check_key(session_id, cipher, [event])

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``, as the inner driver does."""
        if not self._chains.is_known(session_id):
            _check_id(session_id)
        for event in events:
            check_session(session_id, event)
        if not events:
            await self.inner.append_events(session_id, events, generation=generation)
            return
        cipher = await self._chains.append(session_id, events, generation)
        if generation == UNFENCED:
            await self._check_key(session_id, cipher, events)

    def cursor_after(self, event_index: int, /) -> str | None:
        """Return the inner driver's cursor after that index."""
        return self.inner.cursor_after(event_index)

    async def last_event_index(self, session_id: str, /) -> int:
        last = await self.inner.last_event_index(session_id)
        if last and await self._is_erased(session_id):
            return 0
        return last

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        async def read() -> ListPage[SessionEvent]:
            return ListPage(await self.inner.tail_events(session_id, limit=limit))

        return (await self._read_events(session_id, read, None)).items

    async def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        place = _Followed(after)
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
                for opened in await self._open_followed(session_id, event, place):
                    yield opened

    # Claims, deletion and closing.

    async def claim_session(self, session_id: str, /) -> int:
        """Become the session's only writer, as with the inner driver."""
        _check_id(session_id)
        generation = await self.inner.claim_session(session_id)
        # Other writers are refused from now on, so the key that is in the store stays valid.
        self._keys.forget(session_id)
        self._chains.forget(session_id)
        return generation

    async def delete_session(self, session_id: str, /) -> None:
        """Destroy the session's key and erase its record and events.

        Raises:
            NotImplementedError: the inner driver can't delete. Use ``erase``.
        """
        if Capability.DELETE not in self.capabilities:
            raise NotImplementedError(
                f"{type(self.inner).__name__} can't delete sessions: erase() destroys the key of one"
            )
        await self.erase(session_id)

    async def erase(self, session_id: str, /) -> None:
        """Destroy the session's key, so that it can't be read again, and delete the session if possible.

        The session's writer is refused from then on. If an erasure was interrupted, call it again.
        """
        _check_id(session_id)
        for _ in range(_TRIES):
            await self._erase(session_id)
            # A session of that id that was created meanwhile may have lost its events: it is erased, too.
            if Capability.DELETE not in self.capabilities or await self._keys.find(session_id) is None:
                return
        raise _conflict_error(session_id)

    async def _erase(self, session_id: str) -> None:
        await self.inner.claim_session(session_id)
        record = await self.inner.get_session(session_id)
        if record is not None and not is_blank(record):
            # From here on readers do not see it, even if this process is killed.
            await self.inner.update_session(make_blank(session_id, record.created_at))
        await self._keys.destroy(session_id)
        self._chains.erased(session_id)
        if Capability.DELETE in self.capabilities:
            # Together: another erasure may have ended, and the session may have been created again. The
            # session is the last: what was written without this key by then goes with it.
            await self.inner.delete_sessions([HEAD_PREFIX + session_id, KEY_PREFIX + session_id, session_id])
            self._keys.forget(session_id)

    async def verify_chain(self, session_id: str, /) -> Findings:
        """Return what is wrong with a session, and what can't be known of it; nothing is changed.

        Raises:
            PersistError: the store failed.
        """
        problems: dict[str, None] = {}
        found = Findings([], [], "")
        try:
            _check_id(session_id)
            found = await self._chains.verify(session_id)
        except PersistError as error:
            if error.session_id is None:
                raise
            problems[str(error)] = None
        try:
            await self.get_session(session_id)
        except PersistError as error:
            if error.session_id is None:
                raise
            # A key that can't be read was met before.
            problems[str(error)] = None
        return found._replace(problems=[*found.problems, *problems])

    async def rotate_keys(self) -> int:
        """Wrap the session keys that one of ``old_keys`` wraps with ``key``; return how many.

        Payloads do not change, and writers can continue. If it was interrupted, call it again; concurrent
        calls are safe. When it returns, the old keys are no longer needed.

        Raises:
            PersistError: the master key of a session's key is unknown (the others were wrapped again), or the
                store failed.
        """
        return await self._keys.rotate()

    async def close(self) -> None:
        """End the followers. Closes the inner driver only with ``close_inner``."""
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
            sealed = read_sealed_record(record)
            found = keys.get(record.id)
            if found is not None and found.cipher is not None and found.cipher.key_id == sealed.key_id:
                opened.append(open_record(found.cipher, record, sealed))
                continue
            again = await self.get_session(record.id)
            if again is not None:
                opened.append(again)
        return opened

    async def _keep_if_any(self, cursor: str) -> str | None:
        """Return the cursor if there is a session after it."""
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

    async def _read_events(
        self,
        session_id: str,
        read: Callable[[], Awaitable[ListPage[SessionEvent]]],
        start: Place | None,
    ) -> ListPage[SessionEvent]:
        """Return a page that is decrypted and checked.

        Args:
            session_id: the session.
            read: reads a page of the inner driver.
            start: up to where the chain was read before; None: unknown.
        """
        breaks: list[Break] = []
        earlier: Head | None = None
        for left in reversed(range(READS)):
            page = await read()
            try:
                opened, rows, cipher = await self._open_events(session_id, page.items)
            except _KeyMissingError as error:
                if not left:
                    raise _missing_key_error(error.what, session_id) from None
                continue  # the session was erased after its events were read
            if cipher is not None and self._chains.checks:
                ends = page.next_cursor is None
                _, breaks, earlier = await self._chains.check(
                    session_id, cipher, rows, start, ends=ends, earlier=earlier
                )
            if not breaks or cipher is None:
                return ListPage(opened, page.next_cursor)
        raise broken_error(session_id, breaks)

    async def _open_events(
        self, session_id: str, events: Sequence[SessionEvent]
    ) -> tuple[list[SessionEvent], list[Stored], SessionCipher | None]:
        """Return the events decrypted and as stored, without those of erased keys; and the cipher."""
        found = await self._keys.find(session_id)
        if found is None:
            if not events or await self._is_erased(session_id):
                return [], [], None
            read_sealed_event(events[0])
            raise _KeyMissingError(f"the events of session '{session_id}'")
        cipher, gone = found.cipher, found.gone
        if cipher is None:
            return [], [], None

        def opened(events: Sequence[SessionEvent]) -> tuple[list[SessionEvent], list[Stored]]:
            rows = [(event, read_sealed_event(event)) for event in events]
            rows = [row for row in rows if row[1].key_id not in gone]
            for event, sealed in rows:
                if sealed.key_id != cipher.key_id:
                    raise _KeyMissingError(f"event '{event.id}' of session '{session_id}'")
            return [open_event(cipher, event, sealed) for event, sealed in rows], rows

        return *await in_thread_if_large(events, opened), cipher

    async def _open_followed(
        self, session_id: str, event: SessionEvent, followed: _Followed
    ) -> list[SessionEvent]:
        known = self._keys.known(session_id)
        sealed = read_sealed_event(event)
        if known is not None and known.key_id == sealed.key_id:
            # A new event was written a moment ago, so the known key need not be read again.
            opened, rows, cipher = [open_event(known, event, sealed)], [(event, sealed)], known
        else:
            try:
                opened, rows, cipher = await self._open_events(session_id, [event])
            except _KeyMissingError as error:
                raise _missing_key_error(error.what, session_id) from None
        if cipher is not None and self._chains.checks:
            start = followed.place if followed.key_id in ("", cipher.key_id) else None
            place, breaks = walk(rows, start)
            if breaks:
                place, breaks, _ = await self._chains.check(session_id, cipher, rows, start, ends=False)
            if breaks:
                raise broken_error(session_id, breaks)
            followed.place, followed.key_id = place, cipher.key_id
        return opened

    async def _is_erased(self, session_id: str) -> bool:
        """Return whether the session was erased, is being erased, or never existed."""
        found = await self._keys.find(session_id)
        if found is not None:
            return found.cipher is None
        record = await self.inner.get_session(session_id)
        if record is not None:
            return is_blank(record)
        return not (await self.inner.list_events(session_id, limit=1)).items

    # Writing without a claim: an erasure does not refuse the writer, so the key is checked after the write.

    async def _is_current(self, session_id: str, cipher: SessionCipher) -> bool:
        found = await self._keys.find(session_id)
        if found is not None and found.cipher is not None and found.cipher.key_id == cipher.key_id:
            return True
        self._keys.forget(session_id)
        return False

    async def _check_key(
        self, session_id: str, cipher: SessionCipher, written: Sequence[SessionEvent]
    ) -> None:
        """Encrypt again what was written while the session, and with it the key, was erased."""
        ids = {event.id for event in written}
        for _ in range(_TRIES):
            if await self._is_current(session_id, cipher):
                return
            current = await self._keys.obtain(session_id)
            async for events in all_pages(partial(self.inner.list_events, session_id)):
                for event in events:
                    if event.id in ids and (sealed := read_sealed_event(event)).key_id == cipher.key_id:
                        plain = open_event(cipher, event, sealed)
                        await self.inner.insert_event(session_id, seal_event(current, plain))
            cipher = current
        raise _conflict_error(session_id)


class _KeyMissingError(Exception):
    """What can't be read because its key is not in the store."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class _Followed:
    """Up to where a follower has read a chain, and the chain's key."""

    def __init__(self, after: int) -> None:
        self.place: Place | None = Place(after)
        self.key_id = ""


def _start(cursor: str | None) -> Place | None:
    """Return up to where a reader with that cursor has read; None: unknown."""
    after = decode_cursor(cursor)
    if after is None:
        return None if cursor else Place(0)
    # Without an id it is before the event of that index.
    return None if after.offset else Place(max(0, after.position - (not after.id)))


def _check_id(session_id: str) -> None:
    if session_id.startswith((KEY_PREFIX, HEAD_PREFIX)):
        raise PersistError(
            f"'{session_id}' can't be a session of an encrypted store: ids that begin with '{KEY_PREFIX}' or "
            f"'{HEAD_PREFIX}' belong to the encryption, choose another",
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


def _missing_key_error(what: str, session_id: str) -> PersistError:
    return PersistError(
        f"{what} can't be read: its key is not in the store; restore the record '{KEY_PREFIX}{session_id}' "
        "from a copy of the store",
        session_id=session_id,
    )


def _conflict_error(session_id: str) -> PersistError:
    return PersistError(
        f"session '{session_id}' could not be written or erased because others kept erasing or creating it: "
        "try again",
        session_id=session_id,
    )
