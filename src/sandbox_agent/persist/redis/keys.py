"""The driver's keys. All keys of a session carry its id as hash tag, so a cluster keeps them on one node."""

from __future__ import annotations

from typing import Final

_QUOTED: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
# Index entries sort as texts: created_at, shifted so that it has no sign, with a fixed width.
_OFFSET: Final = 2**63
_WIDTH: Final = 16


class SessionKeys:
    """The keys of one session.

    Attributes:
        record: a hash, the columns of the session's record.
        events: a stream with the ids ``<event_index>-0``.
        ids: a hash, event id to index.
        meta: a hash: ``generation`` of the writer, ``life`` (when this history began), ``last`` (index).
        side: a hash, index to event: events that were replaced or came out of order.
        order: a sorted set, the indexes in ``side``.
        end: a stream that notifies followers of a deletion.
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
        """All but ``end``, in the order of the scripts' KEYS."""
        return (self.events, self.ids, self.meta, self.record, self.order, self.side)


class Keys:
    """The keys with one prefix.

    Attributes:
        index: a sorted set of all sessions, in the order of listings.
    """

    def __init__(self, prefix: str) -> None:
        if not prefix or "{" in prefix or "}" in prefix:
            raise ValueError("the prefix must be a text without braces, such as 'sandbox-agent'")
        self._prefix = to_bytes(prefix)
        self.index: bytes = self._prefix + b":index"

    def of_session(self, session_id: str) -> SessionKeys:
        """Return the keys of a session."""
        # Redis ignores an empty hash tag.
        return SessionKeys(b"%s:{%s}" % (self._prefix, to_bytes(quote_tag(session_id)) or b"%"))


def quote_tag(text: str) -> str:
    """Return a text that can be a hash tag."""
    return text.translate(_QUOTED)


def index_entry(created_at: int, session_id: str) -> bytes:
    """Return the entry of a session. Entries sort by (created_at, id)."""
    return b"%0*x:%s" % (_WIDTH, min(max(created_at + _OFFSET, 0), 2 * _OFFSET - 1), to_bytes(session_id))


def session_of_entry(entry: bytes) -> str:
    """Return the session id of an index entry."""
    return to_text(entry[_WIDTH + 1 :])


def to_bytes(value: str) -> bytes:
    """Return a text as it is stored; lone surrogates are kept."""
    return value.encode(errors="surrogatepass")


def to_text(value: bytes) -> str:
    """Return a stored text."""
    return value.decode(errors="surrogatepass")
