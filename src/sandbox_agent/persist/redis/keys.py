"""The keys of a session: all of them carry its id as hash tag, so a cluster keeps them on one node."""

from __future__ import annotations

from typing import Final

__all__ = ["Keys", "SessionKeys", "index_entry", "session_of_entry", "to_bytes", "to_text"]

_QUOTED: Final = {"%": "%25", "{": "%7B", "}": "%7D"}
# Index entries sort by this text: created_at, moved up so that it has no sign, in a fixed width.
_OFFSET: Final = 2**63
_WIDTH: Final = 16


class SessionKeys:
    """The keys of one session.

    Attributes:
        record: a hash, the columns of the session's record.
        events: a stream, its ids are ``<event_index>-0``.
        ids: a hash, event id to index.
        meta: a hash: ``generation`` of the writer, ``life`` (when this history began), ``last`` (index).
        side: a hash, index to event: those that came out of order or were replaced.
        order: a sorted set, the indexes that are in ``side``.
        end: a stream that tells followers that the session was deleted.
    """

    __slots__ = ("end", "events", "ids", "meta", "order", "record", "side")

    def __init__(self, base: bytes) -> None:
        self.record: bytes = base + b":record"
        self.events: bytes = base + b":events"
        self.ids: bytes = base + b":ids"
        self.meta: bytes = base + b":meta"
        self.side: bytes = base + b":side"
        self.order: bytes = base + b":order"
        self.end: bytes = base + b":end"

    @property
    def data(self) -> tuple[bytes, ...]:
        """All but ``end``, in the order that the scripts take them."""
        return (self.events, self.ids, self.meta, self.record, self.order, self.side)


class Keys:
    """The keys below a prefix.

    Attributes:
        index: a sorted set of all sessions, in the order of listings.
    """

    def __init__(self, prefix: str) -> None:
        if not prefix or "{" in prefix or "}" in prefix:
            raise ValueError("the prefix must be a text without braces, such as 'sandbox-agent'")
        self._prefix = to_bytes(prefix)
        self.index: bytes = self._prefix + b":index"

    def of(self, session_id: str) -> SessionKeys:
        """Return the keys of a session."""
        quoted = "".join(_QUOTED.get(character, character) for character in session_id)
        # An empty hash tag is none.
        return SessionKeys(b"%s:{%s}" % (self._prefix, to_bytes(quoted) or b"%"))


def index_entry(created_at: int, session_id: str) -> bytes:
    """Return the entry of a session; entries sort by (created_at, id)."""
    return b"%0*x:%s" % (_WIDTH, min(max(created_at + _OFFSET, 0), 2 * _OFFSET - 1), to_bytes(session_id))


def session_of_entry(entry: bytes) -> str:
    """Return the id in an entry."""
    return to_text(entry[_WIDTH + 1 :])


def to_bytes(value: str) -> bytes:
    """Return a text as it is stored; lone surrogates pass."""
    return value.encode(errors="surrogatepass")


def to_text(value: bytes) -> str:
    """Return a stored text."""
    return value.decode(errors="surrogatepass")
