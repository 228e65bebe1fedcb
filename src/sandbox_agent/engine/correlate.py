"""Matches requests and responses on one agent's pipe: several clients, colliding ids, first answer wins."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from sandbox_agent.wire.jsonrpc import DECODE_FAILURES, Head, InvalidEnvelopeError, canonical_id, replace_id

# The audience of an agent's envelope is the name of a client, all clients without a name, or everyone.
UNNAMED: Final = ""
EVERYONE: Final = None

# Our ids start at a number that JavaScript still represents exactly and that no client reaches.
_FIRST_ALIAS = 2**52
# Later sessions of a connection are not remembered.
_MAX_SESSIONS = 10_000
_OPENINGS = {"session/new", "session/fork"}


class _Session(msgspec.Struct, rename="camel", gc=False):
    session_id: str | None = None


class _Envelope(msgspec.Struct, gc=False):
    params: _Session | None = None
    result: _Session | None = None


_decode = msgspec.json.Decoder(_Envelope).decode


@dataclass(slots=True, eq=False)
class Pending:
    """A client's request that has no response yet.

    Attributes:
        client: The name of the client, or UNNAMED.
        method: The method.
        original_id: The id of the client, as JSON.
        wire_id: The id that the agent receives, as JSON.
        contested: Whether another request of the same audience had the same id at the same time.
    """

    client: str
    method: str
    original_id: bytes
    wire_id: bytes
    contested: bool = False

    @property
    def rewritten(self) -> bool:
        """Whether the agent receives another id than the client's."""
        return self.wire_id is not self.original_id


@dataclass(slots=True, eq=False)
class Submitted:
    """How a client's envelope is handled.

    Attributes:
        line: The bytes for the agent, without a newline. None if nothing is sent: the agent's request
            already has an answer.
        method: The method, or None for a response.
        pending: The request to wait for, or None for a notification or a response.
        answered: The key of the agent's request that this response answers, or None.
    """

    line: bytes | None
    method: str | None = None
    pending: Pending | None = None
    answered: bytes | None = None


@dataclass(slots=True, eq=False)
class MatchedResponse:
    """A response of the agent, and the request that it belongs to.

    Attributes:
        pending: The request.
        line: The response with the client's own id, for the client's POST.
        feed_line: The response for the feed.
    """

    pending: Pending
    line: bytes
    feed_line: bytes


class Correlator:
    """The ids of one connection.

    An id is rewritten only if the same id is pending. In the feed, a response has the client's own id, with
    one exception: if two requests of one audience had the same id at once, the id would be ambiguous. The
    feed then shows an id that belongs to no request, and each POST still receives its own response.

    Attributes:
        prompts: How many prompts were submitted.
    """

    def __init__(self) -> None:
        self._pending: dict[bytes, Pending] = {}
        self._agent_requests: set[bytes] = set()
        self._aliases = 0
        self.prompts: int = 0
        self._sessions: set[str] = set()

    def submit(self, client: str, head: Head, envelope: bytes) -> Submitted:
        """Register an envelope of a client and return what to send to the agent.

        Args:
            client: The name of the client, or UNNAMED.
            head: The head of the envelope, from read_head.
            envelope: The whole envelope.

        Raises:
            InvalidEnvelopeError: The id is neither a string nor a number.
        """
        if b"\n" in envelope or b"\r" in envelope:
            # Raw line ends can only be whitespace between JSON tokens; on the pipe they end the message.
            envelope = envelope.replace(b"\n", b" ").replace(b"\r", b" ")
        if head.is_request:
            return self._submit_request(client, envelope, head)
        if head.is_response:
            return self._submit_first_answer(envelope, head)
        return Submitted(envelope, head.method)

    def _submit_first_answer(self, envelope: bytes, head: Head) -> Submitted:
        """Pass on the first answer to a request of the agent; the others are not sent."""
        with suppress(InvalidEnvelopeError):  # no request of the agent has such an id
            key = canonical_id(head.id)
            if key in self._agent_requests:
                self._agent_requests.discard(key)
                return Submitted(envelope, answered=key)
        return Submitted(None)

    def _submit_request(self, client: str, envelope: bytes, head: Head) -> Submitted:
        original = bytes(head.id)
        wire_id = key = canonical_id(original)
        if key in self._pending:
            wire_id = key = self._alias(key)
            envelope = replace_id(envelope, wire_id)
        else:
            wire_id = original
        pending = Pending(client, head.method or "", original, wire_id)
        if pending.rewritten:
            for other in self._pending.values():
                if other.client == client and canonical_id(other.original_id) == canonical_id(original):
                    other.contested = pending.contested = True
        self._pending[key] = pending
        self.prompts += pending.method == "session/prompt"
        if pending.method.startswith("session/"):
            self._add_session(envelope)
        return Submitted(envelope, head.method, pending)

    def _add_session(self, envelope: bytes) -> None:
        with suppress(*DECODE_FAILURES):
            found = _decode(envelope)
            named = found.params or found.result
            if named is not None and named.session_id and len(self._sessions) < _MAX_SESSIONS:
                self._sessions.add(named.session_id)

    def is_session(self, session_id: object) -> bool:
        """Return whether a client has named this session of the agent, or the agent has created it."""
        return isinstance(session_id, str) and session_id in self._sessions

    def is_pending(self, request_id: bytes) -> bool:
        """Return whether a client's request has no response yet; its id (JSON) is the one that was sent."""
        try:
            return canonical_id(request_id) in self._pending
        except InvalidEnvelopeError:
            return False

    def retract(self, submitted: Submitted) -> None:
        """Undo submit() for an envelope that was never written."""
        if submitted.pending is not None:
            self._pending.pop(canonical_id(submitted.pending.wire_id), None)
        if submitted.answered is not None:
            self._agent_requests.add(submitted.answered)

    def register_agent_request(self, head: Head) -> None:
        """Register a request of the agent. The first response to it will be sent to the agent.

        A request whose id is null or invalid cannot be answered and is not registered.
        """
        with suppress(InvalidEnvelopeError):
            self._agent_requests.add(canonical_id(head.id))

    @property
    def prompted(self) -> bool:
        """Whether a turn runs: a session/prompt has no response yet."""
        return any(pending.method == "session/prompt" for pending in self._pending.values())

    @property
    def agent_waits(self) -> bool:
        """Whether a request of the agent has no response yet."""
        return bool(self._agent_requests)

    def awaits(self, request_id: bytes) -> bool:
        """Return whether the agent's request with this id (JSON) has no response yet."""
        try:
            return canonical_id(request_id) in self._agent_requests
        except InvalidEnvelopeError:
            return False

    def match_response(self, head: Head, line: bytes) -> MatchedResponse | None:
        """Match a response of the agent with its request. Return None if there is no such request."""
        try:
            pending = self._pending.pop(canonical_id(head.id), None)
        except InvalidEnvelopeError:
            return None
        if pending is None:
            return None
        if pending.method in _OPENINGS:
            self._add_session(line)
        if not pending.rewritten:
            feed_line = line
            if pending.contested:
                feed_line = replace_id(line, self._alias(canonical_id(pending.original_id)))
            return MatchedResponse(pending, line, feed_line)
        restored = replace_id(line, pending.original_id)
        return MatchedResponse(pending, restored, line if pending.contested else restored)

    def fail_all(self) -> list[Pending]:
        """Remove and return all pending requests: no response will come."""
        failed = list(self._pending.values())
        self._pending.clear()
        self._agent_requests.clear()
        return failed

    def _alias(self, key: bytes) -> bytes:
        while True:
            self._aliases += 1
            number = _FIRST_ALIAS + self._aliases
            alias = b'"sandbox-agent-%d"' % number if key.startswith(b'"') else b"%d" % number
            if alias not in self._pending:
                return alias
