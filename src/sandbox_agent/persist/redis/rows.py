"""The driver's keys and rows. The keys of a session share a hash tag: a cluster keeps them on one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final, cast

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.columns import to_record, to_row
from sandbox_agent.wire.records import Sender, SessionEvent, SessionRecord

_QUOTED: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
# Index entries sort as texts: created_at, shifted so that it has no sign, with a fixed width.
_OFFSET: Final = 2**63
_WIDTH: Final = 16
_EVENT_PARTS: Final = 6
# Sessions whose keys are remembered.
_REMEMBERED: Final = 1_024
# The fields of a record in the order of ``to_row``; the first ones are always there.
_FIELDS: Final = (
    *(b"id", b"agent", b"agent_session_id", b"last_connection_id", b"created_at"),
    *(b"destroyed_at", b"sandbox_id", b"session_init_json", b"config_options_json", b"modes_json"),
)
_REQUIRED: Final = 5


class SessionKeys:
    """The keys of one session.

    Attributes:
        record: a hash, the columns of the session's record.
        events: a stream with the ids ``<event_index>-0``.
        ids: a hash, event id to index.
        meta: a hash: ``generation`` of the writer, ``life`` (when this history began), ``last`` (index), and
            the ``head`` of its chain if it is encrypted.
        side: a hash, index to event: events that were replaced or came out of order.
        order: a sorted set, the indexes in ``side``.
        end: a stream that notifies followers of a deletion.
        data: all but ``end``, in the order of the scripts' KEYS.
    """

    __slots__ = ("data", "end", "events", "ids", "meta", "order", "record", "side")

    def __init__(self, base: bytes) -> None:
        self.record: bytes = base + b":record"
        self.events: bytes = base + b":events"
        self.ids: bytes = base + b":ids"
        self.meta: bytes = base + b":meta"
        self.side: bytes = base + b":side"
        self.order: bytes = base + b":order"
        self.end: bytes = base + b":end"
        self.data: tuple[bytes, ...] = (
            *(self.events, self.ids, self.meta),
            *(self.record, self.order, self.side),
        )


class Keys:
    """The keys with one prefix.

    Attributes:
        index: a sorted set of all sessions, in the order of listings.
        of_session: returns the keys of a session.
    """

    def __init__(self, prefix: str) -> None:
        if not prefix or "{" in prefix or "}" in prefix:
            raise ValueError("the prefix must be a text without braces, such as 'sandbox-agent'")
        self._prefix = to_bytes(prefix)
        self.of_session: Callable[[str], SessionKeys] = lru_cache(_REMEMBERED)(self._of_session)
        self.index: bytes = self._prefix + b":index"

    def _of_session(self, session_id: str) -> SessionKeys:
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


def pack_event(event: SessionEvent) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Return an event as arguments of the scripts."""
    return (
        to_bytes(event.id),
        b"%d" % event.created_at,
        to_bytes(event.connection_id),
        event.sender.encode(),
        event.payload_json,
    )


def pack_head(head: SessionEvent) -> bytes:
    """Return the head of an encrypted session as it is stored."""
    return b"%d %s" % (head.created_at, head.payload_json)


def read_head(head_id: str, packed: bytes) -> SessionEvent:
    """Return a stored head."""
    created_at, _, payload = packed.partition(b" ")
    return SessionEvent(head_id, 1, head_id, int(created_at), "", "client", payload)


def read_events(session_id: str, lengths: bytes, texts: bytes) -> list[SessionEvent]:
    """Return the events of an answer of the READ script."""
    if not lengths:
        return []
    ends = list(accumulate(map(int, lengths.split(b",")), initial=0))
    parts = [texts[begin:end] for begin, end in pairwise(ends)]
    return [
        read_event(session_id, parts[at : at + _EVENT_PARTS]) for at in range(0, len(parts), _EVENT_PARTS)
    ]


def read_event(session_id: str, parts: Sequence[bytes]) -> SessionEvent:
    """Return the event of index, id, created_at, connection_id, sender and payload."""
    index, event_id, created_at, connection_id, sender, payload = parts
    return SessionEvent(
        to_text(event_id),
        int(index),
        session_id,
        int(created_at),
        to_text(connection_id),
        cast("Sender", sender.decode()),
        payload,
    )


def pack_record(session: SessionRecord) -> list[bytes]:
    """Return a record as fields and values of a hash, without those that are None.

    Raises:
        PersistError: a value can't be written as JSON.
    """
    words: list[bytes] = []
    for name, value in zip(_FIELDS, to_row(session), strict=True):
        if value is not None:
            words += (name, to_bytes(str(value)))
    return words


def read_record(answer: Sequence[bytes] | Mapping[bytes, bytes]) -> SessionRecord | None:
    """Return the record of a hash; None if there is no hash.

    Raises:
        PersistError: a field is missing or invalid.
    """
    row = dict(answer) if isinstance(answer, Mapping) else dict(zip(answer[::2], answer[1::2], strict=True))
    if not row:
        return None
    try:
        required = [to_text(row[name]) for name in _FIELDS[:_REQUIRED]]
        others = [to_text(row[name]) if name in row else None for name in _FIELDS[_REQUIRED:]]
        return to_record([*required, *others])
    except (KeyError, ValueError) as error:
        session_id = row.get(b"id", b"?").decode(errors="replace")
        raise PersistError(
            f"session '{session_id}' is damaged in the store, a field can't be read: {error}",
            session_id=session_id,
        ) from error
