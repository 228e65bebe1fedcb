"""Verify stored sessions: their chains, and that they continue what they were at an earlier time."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from functools import partial

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import SessionPersistDriver, all_pages
from sandbox_agent.persist.encrypted.chain import HEAD_PREFIX
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.encrypted.keys import KEY_PREFIX
from sandbox_agent.wire.records import SessionEvent

__all__ = ["KnownHead", "Verified", "verify_sessions"]


class KnownHead(msgspec.Struct, frozen=True):
    """How far a session was at some time.

    Attributes:
        last: the index of its last event, 0 without events.
        digest: the SHA-256 digest of all its events up to that one, as they are stored (encrypted, where they
            are), as hexadecimal digits.
        key: the id of the session's key in an encrypted store; empty if it has none, or is not known.
    """

    last: int = 0
    digest: str = ""
    key: str = ""


class Verified(msgspec.Struct):
    """The result for one session.

    Attributes:
        session_id: the session.
        head: how far it is.
        events: how many events it has.
        problems: what is wrong; empty if nothing is.
        notes: what can't be known.
    """

    session_id: str
    head: KnownHead = KnownHead()
    events: int = 0
    problems: list[str] = msgspec.field(default_factory=list[str])
    notes: list[str] = msgspec.field(default_factory=list[str])


async def verify_sessions(
    driver: SessionPersistDriver,
    session_ids: Iterable[str] = (),
    known: Mapping[str, KnownHead] | None = None,
) -> AsyncGenerator[Verified]:
    """Verify sessions, one after another. Nothing is changed.

    Of encrypted sessions the chain is checked. Of others, that no index is missing between events; that one
    was changed, or that the last ones are missing, shows only against a head that is known.

    Args:
        driver: the store.
        session_ids: the sessions; none: all of the store, and all whose heads are known.
        known: heads of an earlier time, which the sessions must continue.

    Raises:
        PersistError: the store failed.
    """
    known = known or {}
    store = driver.inner if isinstance(driver, EncryptedSessionPersistDriver) else driver
    done: set[str] = set()
    chosen = list(session_ids)
    if chosen:
        for session_id in chosen:
            yield await _verify(driver, store, session_id, known.get(session_id), must_exist=True)
        return
    async with aclosing(_list_ids(store)) as found:
        async for session_id in found:
            if session_id not in done:
                done.add(session_id)
                yield await _verify(driver, store, session_id, known.get(session_id))
    for session_id in known.keys() - done:
        yield await _verify(driver, store, session_id, known[session_id])


async def _list_ids(store: SessionPersistDriver) -> AsyncGenerator[str]:
    """Iterate over the sessions, those included of which an encrypted store has the key only."""
    async with aclosing(all_pages(partial(store.list_sessions, limit=500))) as pages:
        async for records in pages:
            for record in records:
                yield record.id.removeprefix(KEY_PREFIX)


async def _verify(
    driver: SessionPersistDriver,
    store: SessionPersistDriver,
    session_id: str,
    known: KnownHead | None,
    *,
    must_exist: bool = False,
) -> Verified:
    verified = Verified(session_id)
    await _compare(store, verified, known)
    if isinstance(driver, EncryptedSessionPersistDriver):
        problems, verified.notes, key = await driver.verify_chain(session_id)
        verified.head = msgspec.structs.replace(verified.head, key=key)
        if known is not None and known.key not in ("", key) and verified.events and not verified.problems:
            verified.problems.append(
                "it has another key than before: it was erased, and created again"
                if key
                else "its key was destroyed: it was erased since"
            )
        verified.problems += problems
    try:
        exists = bool(verified.problems) or await driver.get_session(session_id) is not None
    except PersistError as error:
        if error.session_id is None:
            raise
        verified.problems.append(str(error))
        exists = True
    if must_exist and not exists and not verified.events:
        verified.problems.append("it is not in the store")
    return verified


async def _compare(store: SessionPersistDriver, verified: Verified, known: KnownHead | None) -> None:
    """Compute the head, compare it with the known one, and find missing indexes."""
    session_id = verified.session_id
    digest = hashlib.sha256()
    last = 0
    then: str | None = "" if known is not None and not known.last else None
    plain = not session_id.startswith(HEAD_PREFIX) and not await _has_key(store, session_id)
    async with aclosing(all_pages(partial(store.list_events, session_id))) as pages:
        async for events in pages:
            for event in events:
                if known is not None and then is None and event.event_index > known.last:
                    then = digest.hexdigest()
                if plain and event.event_index > last + 1:
                    _note_gap(verified, last + 1, event, known)
                _add(digest, event)
                last = event.event_index
                verified.events += 1
    verified.head = KnownHead(last, digest.hexdigest() if verified.events else "")
    if known is None or not known.last:
        return
    if not verified.events:
        verified.problems.append("it has no events: it was deleted, or the store was set back")
    elif last < known.last:
        verified.problems.append(
            f"it ends with event {last}, and ended with event {known.last} before: the later ones are "
            "missing, or the store was set back"
        )
    elif (then or verified.head.digest) != known.digest:
        verified.problems.append(
            f"its events up to {known.last} are not those of before: one was changed, removed or put back"
        )


async def _has_key(store: SessionPersistDriver, session_id: str) -> bool:
    return await store.get_session(KEY_PREFIX + session_id) is not None


def _note_gap(verified: Verified, first: int, event: SessionEvent, known: KnownHead | None) -> None:
    last = event.event_index - 1
    missing = f"event {first} is" if first == last else f"events {first} to {last} are"
    if first == 1:
        # A copy, or a store that drops the oldest.
        verified.notes.append(f"it begins with event {event.event_index}")
        return
    # One that was there before shows in the digest.
    was_there = known is not None and event.event_index <= known.last
    found = verified.notes if was_there else verified.problems
    found.append(f"{missing} missing before event {event.event_index}")


def _add(digest: hashlib._Hash, event: SessionEvent) -> None:  # pyright: ignore[reportPrivateUsage] - its only name
    place = [event.event_index, event.id, event.created_at, event.connection_id, event.sender]
    digest.update(msgspec.json.encode([*place, len(event.payload_json)]))
    digest.update(event.payload_json)
