"""Routes each envelope of a connection to the agent session that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from sandbox_agent.wire.jsonrpc import (
    DECODE_FAILURES,
    NO_ID,
    Head,
    InvalidEnvelopeError,
    canonical_id,
    dumps,
    load_object,
    members,
)
from sandbox_agent.wire.records import Sender

# Requests that create or open a session. They belong to the session of their response.
_OPENINGS = {"session/new", "session/load", "session/resume", "session/fork"}
_MAKES = {"session/new", "session/fork"}
_CLOSES = {"session/close", "session/delete"}
_CANCEL = "$/cancel_request"
# A hostile peer may send requests without end and never answer: the oldest are forgotten.
MAX_PENDING = 10_000
MAX_SESSIONS = 10_000
MAX_HELD_BYTES = 4 * 1024 * 1024
MAX_UNPLACED = 256


class Held(NamedTuple):
    """A request that waits until its session is known. ``stamp`` is a value of the caller."""

    line: bytes
    stamp: object


class Reply(NamedTuple):
    """The request that a response answers, for the metadata of its session.

    Attributes:
        method: The method of the request.
        succeeded: Whether the response has a result.
        value: The value that the request sets (a model, a mode).
    """

    method: str
    succeeded: bool
    value: str = ""


class Route(NamedTuple):
    """The destination of an envelope. Not used for the common case, an open session.

    Attributes:
        native: The agent's id of the session, or None if the envelope belongs to no session.
        every: The envelope belongs to all open sessions of the connection.
        bound: The envelope belongs to the session that the connection is bound to.
        held: The router keeps the envelope and returns it in ``before`` of a later route.
        before: Earlier requests of the same session, which were held.
        opened: The session is opened by this envelope.
        closed: The session is closed by this envelope.
        method: The method of a client's request.
        request_id: The id of a client's request, as JSON.
        reply: The request that this response answers.
    """

    native: str | None = None
    every: bool = False
    bound: bool = False
    held: bool = False
    before: tuple[Held, ...] = ()
    opened: bool = False
    closed: bool = False
    method: str = ""
    request_id: bytes = b""
    reply: Reply | None = None


# A str is the common case: the agent's id of an open session.
To: TypeAlias = "str | Route"

NO_ROUTE = Route()
EVERY_SESSION = Route(every=True)
_HELD = Route(held=True)


class _Params(msgspec.Struct, rename="camel", gc=False):
    session_id: str | None = None


class _Head(Head, gc=False):
    params: _Params | None = None


class _AnyParams(msgspec.Struct, rename="camel", gc=False):
    session_id: object = None
    request_id: msgspec.Raw = NO_ID
    mode_id: object = None
    model_id: object = None
    config_id: object = None


class _Whole(msgspec.Struct, gc=False):
    params: _AnyParams | None = None


class _Result(msgspec.Struct, rename="camel", gc=False):
    session_id: object = None


class _Response(msgspec.Struct, gc=False):
    result: msgspec.Raw = NO_ID
    error: msgspec.Raw = NO_ID


class _Pending(msgspec.Struct):
    """A request without a response, and its session if that is known."""

    method: str
    native: str | None = None
    bound: bool = False
    held: Held | None = None
    kept: Held | None = None
    wants: str | None = None
    value: str = ""


_heads = msgspec.json.Decoder(_Head)
_whole = msgspec.json.Decoder(_Whole)
_results = msgspec.json.Decoder(_Result)
_responses = msgspec.json.Decoder(_Response)


class Router:
    """Knows the sessions of one connection and the session of each pending request.

    Args:
        max_sessions: envelopes of further sessions have no route.
        max_pending: requests in either direction whose session is remembered.
    """

    def __init__(self, *, max_sessions: int = MAX_SESSIONS, max_pending: int = MAX_PENDING) -> None:
        self._open: set[str] = set()
        self._client_requests: dict[bytes, _Pending] = {}
        self._agent_requests: dict[bytes, str | None] = {}
        self._bound = False
        self._unplaced: dict[bytes, _Pending] = {}  # those of _client_requests whose session isn't known
        self._held_bytes = 0
        self._max_sessions = max_sessions
        self._max_pending = max_pending

    def bind(self) -> None:
        """Route sessions that are created or loaded from now on to the caller's session."""
        self._bound = True

    def forget(self, native: str) -> None:
        """Forget a session. Its next use opens it again."""
        self._open.discard(native)

    def route(self, sender: Sender, lines: Sequence[bytes], stamp: object = None) -> list[To]:
        """Return the destination of each envelope. A plain ``str`` is the id of an open session.

        Args:
            sender: The sender of all envelopes.
            lines: The envelopes in order.
            stamp: Stored with requests that are held.
        """
        from_agent = sender == "agent"
        known = self._open
        routes: list[To] = []
        for head, line in zip(_read_heads(lines), lines, strict=True):
            if head is None:
                routes.append(NO_ROUTE)
                continue
            params = head.params
            if from_agent and params is not None and head.id is NO_ID:
                native = params.session_id
                if native is not None and native in known:
                    routes.append(native)
                    continue
            routes.append(
                self._route_agent(head, line) if from_agent else self._route_client(head, line, stamp)
            )
        return routes

    @property
    def held_bytes(self) -> int:
        """The size of the requests that wait until their session is known."""
        return self._held_bytes

    def _route_agent(self, head: _Head, line: bytes) -> To:
        if head.method is None:
            return self._route_response(head, line)
        native = _session_id(head)
        if native is None and head.method.startswith("_adapter/"):
            return EVERY_SESSION
        if native is None:
            if head.method == _CANCEL:
                return self._route_open(self._agent_requests.get(_read_request_id(line)))
            if head.id:
                self._add_agent_request(head, None)
            return NO_ROUTE
        route = self._route_session(native)
        if head.id:
            self._add_agent_request(head, route.native if isinstance(route, Route) else route)
        return route

    def _add_agent_request(self, head: _Head, native: str | None) -> None:
        if len(self._agent_requests) >= self._max_pending:
            del self._agent_requests[next(iter(self._agent_requests))]
        self._agent_requests[_key(head.id)] = native

    def _route_session(self, native: str) -> To:
        """Route an agent's message, which may come before the response that opens its session."""
        if native in self._open:
            return native
        if not self._open_session(native):
            return NO_ROUTE
        named = {key: pending for key, pending in self._unplaced.items() if pending.wants == native}
        if not named:
            # Exactly one pending request creates a session: it must be this one.
            makers = {key: pending for key, pending in self._unplaced.items() if pending.method in _MAKES}
            named = makers if len(makers) == 1 else {}
        before: list[Held] = []
        for key, pending in named.items():
            del self._unplaced[key]
            pending.native = native
            held = self._pop_held(pending)
            if held is not None:
                before.append(held)
        bound = any(pending.bound for pending in named.values())
        return Route(native, bound=bound, before=tuple(before), opened=True)

    def _open_session(self, native: str) -> bool:
        if len(self._open) >= self._max_sessions:
            return False
        self._open.add(native)
        return True

    def _route_response(self, head: _Head, line: bytes) -> To:
        key = _key(head.id) if head.id else b""
        pending = self._client_requests.pop(key, None)
        if pending is None:
            return NO_ROUTE
        self._unplaced.pop(key, None)
        succeeded, result = _read_result(line)
        reply = Reply(pending.method, succeeded, pending.value)
        opens = pending.method in _OPENINGS
        if not succeeded:
            before = (pending.held,) if pending.held is not None else ()
            self._pop_held(pending)
            known = pending.native if pending.native in self._open else None
            return Route(known, bound=pending.bound, before=before, reply=reply)
        native = pending.native
        if opens:
            native = _text(result) or pending.wants or pending.native
        elif native is None:
            native = pending.wants
        if native is None:
            held = self._pop_held(pending)
            return Route(None, bound=pending.bound, before=(held,) if held else (), reply=reply)
        opened = native not in self._open
        held = self._pop_held(pending)
        if opened and not self._open_session(native):
            return Route(None, before=(held,) if held else (), reply=reply)
        if held is None and opened and opens and pending.native not in {None, native}:
            held = pending.kept  # it was first routed to another session, and belongs to this one too
        closed = pending.method in _CLOSES
        if closed:
            self._open.discard(native)
        return Route(
            native,
            bound=pending.bound and opens,
            before=(held,) if held else (),
            opened=opened,
            closed=closed,
            reply=reply,
        )

    def _pop_held(self, pending: _Pending) -> Held | None:
        held, pending.held = pending.held, None
        if held is not None:
            self._held_bytes -= len(held.line)
            # A request that creates a session is small: keep it in case it belongs to another session too.
            pending.kept = held if pending.method in _MAKES else None
        return held

    def _route_client(self, head: _Head, line: bytes, stamp: object) -> To:
        method = head.method
        if method is None:
            return self._route_open(self._agent_requests.pop(_key(head.id), None)) if head.id else NO_ROUTE
        native = _session_id(head)
        if not head.id:
            if method == _CANCEL:
                pending = self._client_requests.get(_read_request_id(line))
                return self._route_open(None if pending is None else pending.native)
            return native if native is not None and native in self._open else NO_ROUTE
        key = _key(head.id)
        pending = _Pending(method, wants=native)
        self._evict_oldest(key)
        self._client_requests[key] = pending
        if method.startswith("session/set_"):
            pending.value = _read_value(line)
        known = native is not None and native in self._open and method not in _MAKES
        if known:
            pending.native = native
            return Route(native, method=method, request_id=bytes(head.id))
        if self._bound and method in _OPENINGS and method != "session/fork":
            pending.bound = True
            self._add_unplaced(key, pending)
            return Route(bound=True, method=method, request_id=bytes(head.id))
        if method in _OPENINGS or native is not None:
            if self._held_bytes + len(line) <= MAX_HELD_BYTES:
                pending.held = Held(line, stamp)
                self._held_bytes += len(line)
            self._add_unplaced(key, pending)
            return NO_ROUTE if pending.held is None else _HELD
        return NO_ROUTE

    def _add_unplaced(self, key: bytes, pending: _Pending) -> None:
        if len(self._unplaced) >= MAX_UNPLACED:
            self._pop_held(self._unplaced.pop(next(iter(self._unplaced))))
        self._unplaced[key] = pending

    def _evict_oldest(self, key: bytes) -> None:
        if key not in self._client_requests:
            if len(self._client_requests) < self._max_pending:
                return
            key = next(iter(self._client_requests))
        self._unplaced.pop(key, None)
        self._pop_held(self._client_requests.pop(key))

    def _route_open(self, native: str | None) -> To:
        return native if native is not None and native in self._open else NO_ROUTE


def _read_heads(lines: Sequence[bytes]) -> Sequence[_Head | None]:
    if len(lines) > 1:
        try:
            heads = _heads.decode_lines(b"\n".join(lines))
        except DECODE_FAILURES:
            heads = []
        if len(heads) == len(lines):
            return heads
    return [_read_head(line) for line in lines]


def _read_head(line: bytes) -> _Head | None:
    try:
        return _heads.decode(line)
    except DECODE_FAILURES:
        pass
    try:
        fields = load_object(line)
    except InvalidEnvelopeError:
        return None
    method = fields.get("method")
    native = members(fields.get("params")).get("sessionId")
    return _Head(
        msgspec.Raw(dumps(fields["id"])) if "id" in fields else NO_ID,
        method if isinstance(method, str) else None,
        _Params(native) if isinstance(native, str) else None,
    )


def _session_id(head: _Head) -> str | None:
    native = None if head.params is None else head.params.session_id
    return native or None


def _read_request_id(line: bytes) -> bytes:
    try:
        params = _whole.decode(line).params
    except DECODE_FAILURES:
        return b""
    return b"" if params is None or not params.request_id else _key(params.request_id)


def _read_value(line: bytes) -> str:
    try:
        params = _whole.decode(line).params
    except DECODE_FAILURES:
        return ""
    if params is None:
        return ""
    return _text(params.model_id) or _text(params.mode_id) or _text(params.config_id) or ""


def _read_result(line: bytes) -> tuple[bool, object]:
    """Return whether a response has a result, and the ``sessionId`` in it."""
    try:
        response = _responses.decode(line)
    except DECODE_FAILURES:
        return False, None
    if response.error and bytes(response.error) != b"null":
        return False, None
    try:
        return True, _results.decode(response.result).session_id if response.result else None
    except DECODE_FAILURES:
        return True, None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _key(raw: msgspec.Raw) -> bytes:
    try:
        return canonical_id(raw)
    except InvalidEnvelopeError:
        return bytes(raw)
