"""The chain of a session's events, which shows that some are missing, in another order, or older copies.

An appended event is bound to its index, to the index of the event before it, and to that event's tag. The
head of the chain, encrypted like an event, says which event is the newest. A driver that has no other place
for it keeps it as the only event of the hidden session ``~head:<session id>``. Only programs with the
session's key can make either. Without the key, events can be removed, or replaced by older copies of
themselves, which breaks the chain. An older copy of the whole session, head included, shows only against a
newer head that is kept elsewhere (``sessions verify --head``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from sandbox_agent.persist.encrypted.cipher import (
    NONCE_BYTES,
    Sealed,
    SessionCipher,
    UnsealedError,
    bind_linked,
    make_nonces,
)
from sandbox_agent.persist.encrypted.forms import changed_error, seal_linked
from sandbox_agent.wire.records import SessionEvent

HEAD_PREFIX: Final = "~head:"

Stored = tuple[SessionEvent, Sealed]


class Break(NamedTuple):
    """What is wrong with a chain.

    Attributes:
        what: without the session.
        missing: the index of the newest event that is missing, 0 if none is.
    """

    what: str
    missing: int = 0


class Place(NamedTuple):
    """Up to where a chain was read.

    Attributes:
        at: the index of an event.
        tag: its tag; empty if it is not known.
    """

    at: int
    tag: bytes = b""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The newest event of a chain. Encrypted is its JSON, an array.

    Attributes:
        first: the index of the chain's first event, 0 if it has none.
        last: the index of the newest event.
        tag: the tag of that event.
        moved: indexes whose events got another one, and the index before each in the chain.
    """

    first: int = 0
    last: int = 0
    tag: bytes = b""
    moved: Mapping[int, int] = {}

    def end(self) -> Place:
        """Return the newest event that is at its place."""
        index = resolve(self.last, self.moved)
        return Place(index, self.tag if index == self.last else b"")

    def seal(
        self, cipher: SessionCipher, session_id: str, created_at: int, *, nonce: bytes | None = None
    ) -> SessionEvent:
        """Return the head as it is stored."""
        name = HEAD_PREFIX + session_id
        content = _encoder.encode(self)
        payload, _ = cipher.seal_linked(content, _bind_head(session_id), nonce=nonce)
        return SessionEvent(name, 1, name, created_at, "", "client", payload)


_UNKNOWN: Final = Head()
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Head)


@lru_cache(maxsize=1_024)
def _bind_head(session_id: str) -> bytes:
    return bind_linked(("head", session_id, None, b"", b""))


def open_head(cipher: SessionCipher, session_id: str, event: SessionEvent) -> Head | None:
    """Return a stored head; None if it is of another key, that is of an erased session.

    Raises:
        PersistError: it was changed in the store.
    """
    try:
        sealed = Sealed.read(event.payload_json)
        if sealed.key_id != cipher.key_id:
            return None
        return _decoder.decode(cipher.open(sealed, ("head", session_id)))
    except (UnsealedError, msgspec.MsgspecError):
        raise changed_error(f"the head of session '{session_id}'", session_id) from None


def extend(
    cipher: SessionCipher, head: Head, after: int, events: Sequence[SessionEvent]
) -> tuple[list[SessionEvent], Head, SessionEvent]:
    """Return the events sealed for the indexes after ``after``, and the new head, also as it is stored."""
    first, moved = head.first or after + 1, head.moved
    if moved:
        moved = {index: before for index, before in moved.items() if index <= after}
        previous, tag = head.end()
    else:
        previous, tag = head.last, head.tag
    session_id = events[0].session_id
    nonces = make_nonces(len(events) + 1)
    sealed: list[SessionEvent] = []
    at = 0
    for event in events:
        after += 1
        nonce = nonces[at : (at := at + NONCE_BYTES)]
        one, tag = seal_linked(cipher, event, after, previous, tag, nonce=nonce)
        previous = after
        sealed.append(one)
    longer = Head(first, after, tag, moved)
    return sealed, longer, longer.seal(cipher, session_id, events[-1].created_at, nonce=nonces[at:])


def resolve(index: int, moved: Mapping[int, int]) -> int:
    """Return the index, or if its event got another one, the nearest before it in the chain."""
    while index in moved:
        index = moved[index]
    return index


def walk(
    events: Iterable[Stored], start: Place | None, head: Head = _UNKNOWN
) -> tuple[Place | None, list[Break]]:
    """Follow the chain over neighboring events.

    Args:
        events: in order. Those in no chain are left out.
        start: how far the chain was read before; None: unknown.
        head: the chain's, as far as it is known.

    Returns:
        How far it was read, and what is wrong.
    """
    place = start
    breaks: list[Break] = []
    exact = start is not None and bool(start.tag)
    for event, sealed in events:
        index = event.event_index
        if sealed.form == "v1" and (exact or 0 < head.first < index):
            breaks.append(
                Break(f"event {index} is of an older release and was put, or put back, into the chain")
            )
        if sealed.previous is None:
            continue
        previous = sealed.previous
        if place is not None and previous > place.at:
            previous = resolve(previous, head.moved)
        if place is None:
            pass
        elif previous > place.at:
            first = place.at + 1
            missing = f"event {first} is" if first == previous else f"events {first} to {previous} are"
            breaks.append(Break(f"{missing} missing before event {index}", previous))
        elif exact and previous < place.at:
            breaks.append(Break(f"event {index} does not follow event {place.at}: one of them was put back"))
        elif place.tag and sealed.link not in {b"", place.tag} and previous == sealed.previous == place.at:
            breaks.append(
                Break(f"event {previous} is not the one that event {index} follows: it was put back")
            )
        place, exact = Place(index, sealed.tag), True
    return place, breaks


def find_cut(place: Place | None, head: Head | None, *, found: bool) -> Break | None:
    """Return what is wrong with the end of a chain.

    Args:
        place: how far it was read; None: unknown, no event of it was read.
        head: the stored one.
        found: whether an event of the chain was read.
    """
    if head is None:
        return Break("the head of its chain is missing") if found else None
    end = head.end()
    if place is None or end.at == 0:
        return None
    if place.at < end.at:
        first = place.at + 1
        missing = f"event {first} is" if first == end.at else f"events {first} to {end.at} are"
        return Break(f"{missing} missing at the end", end.at)
    if place.at == end.at and place.tag and end.tag and place.tag != end.tag:
        return Break(f"event {place.at} is not the newest one of that index: it was put back")
    return None
