"""Requests and answers over one agent's pipe: many clients, ids that collide, the first answer wins."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Final

from sandbox_agent.wire.jsonrpc import Head, InvalidEnvelopeError, dumps, loads, replace_id

__all__ = ["EVERYONE", "UNNAMED", "Answer", "Correlator", "Pending", "Submitted"]

# Whom an envelope of the agent is for: a client's name, all clients without one, or everyone.
UNNAMED: Final = ""
EVERYONE: Final = None

# Ids of ours begin where JSON numbers of JavaScript are still exact and no client counts to.
_FIRST_ALIAS = 2**52


@dataclass(slots=True, eq=False)
class Pending:
    """A client's request that the agent has not answered.

    Attributes:
        client: the name of the client that asked, or UNNAMED.
        method: the method.
        contested: another request of the same audience had the same id while this one was pending.
    """

    client: str
    method: str
    original_id: bytes
    wire_id: bytes
    contested: bool = False

    @property
    def rewritten(self) -> bool:
        """Whether the agent sees another id than the client's."""
        return self.wire_id is not self.original_id


@dataclass(slots=True, eq=False)
class Submitted:
    """What becomes of a client's envelope.

    Attributes:
        line: the bytes for the agent, without a newline; None when nothing is to be sent (an answer
            that came second).
        method: its method, None in an answer.
        pending: the request to wait for, None for a notification or an answer.
        answered: the id of the agent's request that it answers, as a key; else None.
    """

    line: bytes | None
    method: str | None = None
    pending: Pending | None = None
    answered: bytes | None = None


@dataclass(slots=True, eq=False)
class Answer:
    """The agent's answer to a request.

    Attributes:
        pending: the request.
        line: the response with the client's own id, for its POST.
        feed_line: the response as the feed carries it.
    """

    pending: Pending
    line: bytes
    feed_line: bytes


class Correlator:
    """The ids of one connection.

    An id is rewritten only where an equal one is pending. The feed carries an answer under the client's
    own id, except where two requests of one audience had the same id at once: there the id would be
    taken for either's, so the feed shows an id that nobody waits for and each POST gets its own answer.
    """

    def __init__(self) -> None:
        self._pending: dict[bytes, Pending] = {}
        self._asked: set[bytes] = set()
        self._aliases = 0

    def submit(self, client: str, head: Head, envelope: bytes) -> Submitted:
        """Take an envelope from a client.

        Args:
            client: its name, or UNNAMED.
            head: the envelope's, from read_head.
            envelope: the whole of it.

        Raises:
            InvalidEnvelopeError: its id is neither string nor number.
        """
        if b"\n" in envelope or b"\r" in envelope:
            # raw line ends can only stand between JSON tokens; on the pipe they would end the message
            envelope = envelope.replace(b"\n", b" ").replace(b"\r", b" ")
        if head.is_request:
            return self._submit_request(client, envelope, head)
        if head.is_response:
            try:
                key = _key(head.id)
            except InvalidEnvelopeError:
                return Submitted(None)  # no request of the agent has such an id
            if key not in self._asked:
                return Submitted(None)
            self._asked.discard(key)
            return Submitted(envelope, answered=key)
        return Submitted(envelope, head.method)

    def _submit_request(self, client: str, envelope: bytes, head: Head) -> Submitted:
        original = bytes(head.id)
        wire_id = key = _key(original)
        if key in self._pending:
            wire_id = key = self._alias(key)
            envelope = replace_id(envelope, wire_id)
        else:
            wire_id = original
        pending = Pending(client, head.method or "", original, wire_id)
        if pending.rewritten:
            for other in self._pending.values():
                if other.client == client and _key(other.original_id) == _key(original):
                    other.contested = pending.contested = True
        self._pending[key] = pending
        return Submitted(envelope, head.method, pending)

    def retract(self, submitted: Submitted) -> None:
        """Forget an envelope that was never written: its id is free again, its question open again."""
        if submitted.pending is not None:
            self._pending.pop(_key(submitted.pending.wire_id), None)
        if submitted.answered is not None:
            self._asked.add(submitted.answered)

    def asked(self, head: Head) -> None:
        """Note a request of the agent: the first answer to it will go through.

        One whose id is null or unreadable can't be answered, and is shown all the same.
        """
        with suppress(InvalidEnvelopeError):
            self._asked.add(_key(head.id))

    def awaits(self, request_id: bytes) -> bool:
        """Whether the agent's request of that id (JSON) still has no answer."""
        try:
            return _key(request_id) in self._asked
        except InvalidEnvelopeError:
            return False

    def answer(self, head: Head, line: bytes) -> Answer | None:
        """Match a response of the agent with its request; None where nobody asked."""
        try:
            pending = self._pending.pop(_key(head.id), None)
        except InvalidEnvelopeError:
            return None
        if pending is None:
            return None
        if not pending.rewritten:
            feed_line = line
            if pending.contested:
                feed_line = replace_id(line, self._alias(_key(pending.original_id)))
            return Answer(pending, line, feed_line)
        restored = replace_id(line, pending.original_id)
        return Answer(pending, restored, line if pending.contested else restored)

    def fail_all(self) -> list[Pending]:
        """Return the requests that will not be answered any more, and forget them."""
        failed = list(self._pending.values())
        self._pending.clear()
        self._asked.clear()
        return failed

    def _alias(self, key: bytes) -> bytes:
        while True:
            self._aliases += 1
            number = _FIRST_ALIAS + self._aliases
            alias = b'"sandbox-agent-%d"' % number if key.startswith(b'"') else b"%d" % number
            if alias not in self._pending:
                return alias


def _key(raw: bytes) -> bytes:
    """Return an id's canonical bytes: agents write ``1`` for ``1.0`` and unescape strings."""
    raw = bytes(raw)
    if raw.isdigit():
        return raw
    value = loads(raw)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) and not isfinite(value):
        raise InvalidEnvelopeError("id is a number that nobody can read")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidEnvelopeError("id must be a string or a number")
    return dumps(value)
