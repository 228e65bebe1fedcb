"""Encrypt records and events with a session's key, and decrypt them."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import not_json_error
from sandbox_agent.persist.encrypted.cipher import Sealed, SessionCipher, UnsealedError, bind_linked
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads
from sandbox_agent.wire.records import SessionEvent, SessionRecord

_ERASED: Final = {"enc": "erased"}


def seal_event(cipher: SessionCipher, event: SessionEvent, *, like: Sealed | None = None) -> SessionEvent:
    """Return the event with an encrypted payload, bound to all of the event.

    Args:
        cipher: the session's.
        event: the event, with its index.
        like: the event that it replaces, whose place in the chain it gets. Without it, it is in no chain.
    """
    previous, link, kept = (None, b"", b"") if like is None else (like.previous, like.link, like.tag)
    return seal_linked(cipher, event, event.event_index, previous, link, kept)[0]


def seal_linked(
    cipher: SessionCipher,
    event: SessionEvent,
    index: int,
    previous: int | None,
    link: bytes,
    kept: bytes = b"",
    *,
    nonce: bytes | None = None,
) -> tuple[SessionEvent, bytes]:
    """Return the event with that index, an encrypted payload and its place in a chain; and its tag."""
    # The hot path of an append: no copy whose fields are then replaced.
    event_id, session_id, created_at = event.id, event.session_id, event.created_at
    connection_id, sender = event.connection_id, event.sender
    place = ("event-2", session_id, event_id, index, created_at, connection_id, sender, previous, link, kept)
    text, tag = cipher.seal_linked(event.payload_json, bind_linked(place), previous, link, kept, nonce=nonce)
    return SessionEvent(event_id, index, session_id, created_at, connection_id, sender, text), tag


def read_sealed_event(event: SessionEvent) -> Sealed:
    """Return the ciphertext of a stored event; raise PersistError if it is not encrypted."""
    try:
        return Sealed.read(event.payload_json)
    except UnsealedError:
        raise _plain(f"event '{event.id}' of session '{event.session_id}'", event.session_id) from None


def open_event(cipher: SessionCipher, event: SessionEvent, sealed: Sealed) -> SessionEvent:
    """Return the decrypted event; raise PersistError if it was changed in the store."""
    opened = event.copy()
    try:
        place = _event_place(event) if sealed.form == "v1" else _indexed_place(event)
        opened.payload_json = cipher.open(sealed, place)
    except UnsealedError:
        what = f"event {event.event_index} ('{event.id}') of session '{event.session_id}'"
        raise changed_error(what, event.session_id) from None
    return opened


def seal_record(cipher: SessionCipher, record: SessionRecord) -> SessionRecord:
    """Return the record with its JSON columns, which must be JSON values, encrypted in ``session_init``."""
    content = [record.session_init, record.config_options, record.modes]
    try:
        data = dumps(content)
    except (TypeError, ValueError) as error:
        raise not_json_error(record.id, error) from error
    sealed: dict[str, Any] = loads(cipher.seal(data, _record_place(record)))
    return msgspec.structs.replace(record, session_init=sealed, config_options=None, modes=None)


def read_sealed_record(record: SessionRecord) -> Sealed:
    """Return the ciphertext of a stored record; raise PersistError if it is not encrypted."""
    try:
        return Sealed.read(dumps(record.session_init))
    except UnsealedError:
        raise _plain(f"session '{record.id}'", record.id) from None


def open_record(cipher: SessionCipher, record: SessionRecord, sealed: Sealed) -> SessionRecord:
    """Return the decrypted record; raise PersistError if it was changed in the store."""
    try:
        session_init, config_options, modes = loads(cipher.open(sealed, _record_place(record)))
    except (UnsealedError, InvalidEnvelopeError, ValueError, TypeError):
        raise changed_error(f"the record of session '{record.id}'", record.id) from None
    return msgspec.structs.replace(
        record, session_init=session_init, config_options=config_options, modes=modes
    )


def make_blank(session_id: str, created_at: int) -> SessionRecord:
    """Return the record that replaces an erased one until, or if not, the store deletes it."""
    return SessionRecord(
        id=session_id,
        agent="",
        agent_session_id="",
        last_connection_id="",
        created_at=created_at,
        session_init=dict(_ERASED),
    )


def is_blank(record: SessionRecord) -> bool:
    """Whether the record was erased."""
    return record.session_init == _ERASED


def _event_place(event: SessionEvent) -> tuple[object, ...]:
    return ("event", event.session_id, event.id, event.created_at, event.connection_id, event.sender)


def _indexed_place(event: SessionEvent) -> tuple[object, ...]:
    return (
        "event-2",
        event.session_id,
        event.id,
        event.event_index,
        event.created_at,
        event.connection_id,
        event.sender,
    )


def _record_place(record: SessionRecord) -> tuple[object, ...]:
    return (
        "record",
        record.id,
        record.agent,
        record.agent_session_id,
        record.last_connection_id,
        record.created_at,
        record.destroyed_at,
        record.sandbox_id,
    )


def _plain(what: str, session_id: str) -> PersistError:
    return PersistError(
        f"{what} is not encrypted, and this store is read as an encrypted one: open it without encryption, "
        "or move it into a store that is encrypted (sandbox-agent sessions move)",
        session_id=session_id,
    )


def changed_error(what: str, session_id: str) -> PersistError:
    """Return the error of a row that someone changed or moved."""
    return PersistError(
        f"{what} can't be decrypted: it was changed in the store, or moved from another place; "
        "restore it from a copy of the store",
        session_id=session_id,
    )
