"""The W3C trace context of a request, which its prompt takes to the agent.

ACP has it as ``traceparent`` and ``tracestate`` in ``params._meta``.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import msgspec

from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads, members

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
TRACE_HEADERS = frozenset({TRACEPARENT.encode(), TRACESTATE.encode()})
# Of all versions: what follows in later ones is kept.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_MAX_TRACESTATE = 512
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class TraceContext(NamedTuple):
    """The position in a trace: the span that is the parent of what follows."""

    traceparent: str
    tracestate: str = ""

    def carrier(self) -> dict[str, str]:
        """Return it as members of ``_meta``."""
        return {TRACEPARENT: self.traceparent, **({TRACESTATE: self.tracestate} if self.tracestate else {})}


_context: ContextVar[TraceContext | None] = ContextVar("sandbox_agent_trace_context", default=None)


def current_trace() -> TraceContext | None:
    """Return the trace context of the request that is being handled."""
    return _context.get()


@contextmanager
def trace_context(context: TraceContext | None) -> Generator[None]:
    """Handle a request with a trace context."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def parse_trace(values: Iterable[tuple[object, object]]) -> TraceContext | None:
    """Return the trace context in headers or members; None if it is missing or invalid."""
    found = {name: value for name, value in values if isinstance(value, str)}
    parent, state = found.get(TRACEPARENT, ""), found.get(TRACESTATE, "")
    if not _TRACEPARENT.fullmatch(parent) or len(parent) > _MAX_TRACESTATE:
        return None
    fits = len(state) <= _MAX_TRACESTATE and state.isascii() and state.isprintable()
    return TraceContext(parent, state if fits else "")


def add_trace(method: str | None, envelope: bytes) -> bytes:
    """Return a prompt with the trace context of its request, unless it has one of its own."""
    context = _context.get()
    if context is None or method != "session/prompt":
        return envelope
    try:
        fields: dict[str, Any] = dict(_decode_members(envelope))
        params: dict[str, Any] = dict(_decode_members(fields["params"]))
        meta: dict[str, Any] = dict(_decode_members(params.get("_meta", b"{}")))
        if TRACEPARENT in meta:
            return envelope
        return dumps({**fields, "params": {**params, "_meta": {**meta, **context.carrier()}}})
    except (msgspec.MsgspecError, UnicodeError, RecursionError, KeyError, InvalidEnvelopeError):
        return envelope  # the agent reports the error best


def read_trace(envelope: bytes) -> TraceContext | None:
    """Return the trace context in the ``_meta`` of an envelope."""
    if b"traceparent" not in envelope:
        return None
    try:
        meta = members(members(members(loads(envelope)).get("params")).get("_meta"))
    except InvalidEnvelopeError:
        return None
    return parse_trace(meta.items())
