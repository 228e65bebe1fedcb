"""Session keys. Each is stored in a hidden record beside its session, in the encrypted store.

The record of a key has the id ``~key:<session id>``; its ``session_init`` holds the wrapped key. It is a
separate record, so that a key can be wrapped again while the session is written: neither overwrites the
other. It is created with the first row of a session, which may be an event of a session without a record.

Every change of a key claims the record and saves it with that generation. If two processes change a key at
once, the later one is refused, reads the record again and uses what the first one stored.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import anyio
import msgspec

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import SessionPersistDriver, all_pages
from sandbox_agent.persist.encrypted.cipher import MasterKeys, SessionCipher, WrappedKey
from sandbox_agent.wire.records import SessionRecord

# A tilde sorts after letters and digits, so a session comes before its key if both are equally old.
KEY_PREFIX: Final = "~key:"

_AGENT: Final = "sandbox-agent-key"
_FORM: Final = "v1"
# How many ciphers are cached.
_REMEMBERED: Final = 4_096
# Attempts while other processes change the key, and the pause between them in seconds.
_TRIES: Final = 100
_PAUSE: Final = 0.005
# In a store whose rows expire, a key must live as long as its session. It is saved again at this interval
# while the session is written, in seconds.
_TOUCH_EVERY: Final = 60.0
_PAGE: Final = 500


class _Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key record's ``session_init``: the key, and the ids of earlier keys that were destroyed."""

    key: WrappedKey | None = None
    gone: tuple[str, ...] = ()
    form: str = _FORM


class SessionKey(NamedTuple):
    """A session key, None if it was destroyed; and the ids of earlier keys that were destroyed."""

    cipher: SessionCipher | None
    gone: tuple[str, ...]


class SessionKeys:
    """The keys of the sessions of a store. Its methods raise PersistError if the store fails."""

    def __init__(self, inner: SessionPersistDriver, masters: MasterKeys) -> None:
        self._inner = inner
        self._masters = masters
        self._known: OrderedDict[str, tuple[WrappedKey, SessionCipher]] = OrderedDict()
        self._touched: dict[str, float] = {}
        # One change of a key at a time, so that concurrent tasks do not refuse each other.
        self._changing: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    async def find(self, session_id: str) -> SessionKey | None:
        """Return the stored key, or None if the session has no key. Raises as ``read``."""
        record = await self._inner.get_session(KEY_PREFIX + session_id)
        return None if record is None else self.read(record)

    def read(self, record: SessionRecord) -> SessionKey:
        """Return the key in a record; raise PersistError if it can't be unwrapped."""
        session_id = record.id.removeprefix(KEY_PREFIX)
        stored = _stored(record, session_id)
        if stored.key is None:
            self.forget(session_id)
            return SessionKey(None, stored.gone)
        return SessionKey(self._cipher(session_id, stored.key), stored.gone)

    async def obtain(self, session_id: str, created_at: int | None = None) -> SessionCipher:
        """Return the session's cipher. If the session has no key, create one. Raises as ``read``.

        Args:
            session_id: the session.
            created_at: when the session was created, in milliseconds; None: now.
        """
        known = self.known(session_id)
        if known is not None:
            await self._touch(session_id)
            return known
        found = await self.find(session_id)
        if found is not None and found.cipher is not None:
            await self._touch(session_id)
            return found.cipher

        def make(stored: _Stored | None) -> _Stored:
            if stored is not None and stored.key is not None:
                return stored
            return _Stored(self._masters.make(session_id)[0], () if stored is None else stored.gone)

        changed = await self._change(session_id, make, created_at)
        assert changed is not None and changed.key is not None  # noqa: PT018 - it is what make returned
        return self._cipher(session_id, changed.key)

    async def destroy(self, session_id: str) -> None:
        """Replace the key, if there is one, with a note that it was destroyed."""
        self.forget(session_id)

        def retire(stored: _Stored | None) -> _Stored | None:
            if stored is None or stored.key is None:
                return stored
            return _Stored(None, (*stored.gone, stored.key.key_id))

        await self._change(session_id, retire)
        self.forget(session_id)

    async def rotate(self) -> int:
        """Wrap the keys that an older master key wraps with the current one; return how many.

        Raises:
            PersistError: a key can't be unwrapped (the others were wrapped again), or the store failed.
        """
        count = 0
        failed: PersistError | None = None
        async for records in all_pages(partial(self._inner.list_sessions, limit=_PAGE)):
            for record in records:
                if not record.id.startswith(KEY_PREFIX):
                    continue
                session_id = record.id.removeprefix(KEY_PREFIX)
                try:
                    if self._is_old(_stored(record, session_id)):
                        count += await self._rewrap(session_id)
                except PersistError as error:
                    if error.session_id is None:
                        raise
                    failed = failed or error
        if failed is not None:
            raise failed
        return count

    def known(self, session_id: str) -> SessionCipher | None:
        """Return the cached cipher."""
        known = self._known.get(session_id)
        return None if known is None else known[1]

    def current(self, session_id: str) -> SessionCipher | None:
        """Return the cached cipher if ``obtain`` would return it at once."""
        known = self._known.get(session_id)
        if known is None or time.monotonic() - self._touched.get(session_id, -_TOUCH_EVERY) >= _TOUCH_EVERY:
            return None
        return known[1]

    def forget(self, session_id: str) -> None:
        """Read the key from the store at the next call."""
        self._known.pop(session_id, None)
        self._touched.pop(session_id, None)

    def _is_old(self, stored: _Stored | None) -> bool:
        return stored is not None and stored.key is not None and stored.key.master != self._masters.current

    async def _rewrap(self, session_id: str) -> int:
        changes = 0

        def rewrap(stored: _Stored | None) -> _Stored | None:
            nonlocal changes
            changes = 0
            if stored is None or stored.key is None or not self._is_old(stored):
                return stored
            changes = 1
            return _Stored(self._masters.rewrap(session_id, stored.key), stored.gone)

        await self._change(session_id, rewrap)
        return changes

    def _cipher(self, session_id: str, wrapped: WrappedKey) -> SessionCipher:
        known = self._known.get(session_id)
        if known is not None and known[0] == wrapped:
            return known[1]
        # Also unwrapped if only its master key is another one: the store is not trusted.
        cipher = self._masters.unwrap(session_id, wrapped)
        self._known[session_id] = (wrapped, cipher)
        self._known.move_to_end(session_id)
        while len(self._known) > _REMEMBERED:
            oldest, _ = self._known.popitem(last=False)
            self._touched.pop(oldest, None)
        return cipher

    async def _touch(self, session_id: str) -> None:
        now = time.monotonic()
        if now - self._touched.get(session_id, -_TOUCH_EVERY) >= _TOUCH_EVERY:
            self._touched[session_id] = now
            await self._change(session_id, lambda stored: stored, always=True)

    async def _change(
        self,
        session_id: str,
        change: Callable[[_Stored | None], _Stored | None],
        created_at: int | None = None,
        *,
        always: bool = False,
    ) -> _Stored | None:
        """Store the result of ``change`` on the stored key, and return it."""
        key_id = KEY_PREFIX + session_id
        async with self._changing.setdefault(session_id, anyio.Lock()):
            for attempt in range(_TRIES):
                generation = await self._inner.claim_session(key_id)
                record = await self._inner.get_session(key_id)
                stored = None if record is None else _stored(record, session_id)
                wanted = change(stored)
                if wanted is None or (wanted == stored and not always):
                    return wanted
                made_at = created_at if record is None else record.created_at
                try:
                    await self._inner.save_session(
                        _key_record(key_id, made_at, wanted), generation=generation
                    )
                except SessionFencedError:
                    await anyio.sleep(random.uniform(0, _PAUSE * min(attempt + 1, 20)))  # noqa: S311
                    continue
                self._touched[session_id] = time.monotonic()
                return wanted
        raise PersistError(
            f"the key of session '{session_id}' could not be stored, others kept changing it: try again",
            session_id=session_id,
        )


def _key_record(key_id: str, created_at: int | None, stored: _Stored) -> SessionRecord:
    content: dict[str, Any] = msgspec.to_builtins(stored)
    return SessionRecord(
        id=key_id,
        agent=_AGENT,
        agent_session_id="",
        last_connection_id="",
        created_at=time.time_ns() // 1_000_000 if created_at is None else created_at,
        session_init=content,
    )


def _stored(record: SessionRecord, session_id: str) -> _Stored:
    try:
        stored = msgspec.convert(record.session_init, _Stored)
    except msgspec.ValidationError as error:
        raise _damaged_error(session_id) from error
    if stored.key is not None and stored.key.key_id in stored.gone:
        # All that was encrypted with it would be left out as erased.
        raise _damaged_error(session_id)
    if stored.form != _FORM:
        raise PersistError(
            f"the key of session '{session_id}' has the form '{stored.form}', which this release does not "
            "know: upgrade sandbox-agent-py",
            session_id=session_id,
        )
    return stored


def _damaged_error(session_id: str) -> PersistError:
    return PersistError(
        f"the key of session '{session_id}' is damaged in the store: nothing of the session can be read; "
        "restore the store from a copy",
        session_id=session_id,
    )
