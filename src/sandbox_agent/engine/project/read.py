"""Decodes envelopes: a text chunk in one step, others as far as necessary."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from sandbox_agent.wire import jsonrpc
from sandbox_agent.wire.jsonrpc import DECODE_FAILURES, NO_ID, InvalidEnvelopeError, dumps, load_object, loads


class TextChunk(NamedTuple):
    """A piece of streamed text. Most envelopes are one."""

    stream: str
    native_id: str | None
    text: str


class _Content(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None


class _Update(msgspec.Struct, rename="camel", gc=False):
    content: _Content
    session_update: str = ""
    message_id: str | None = None
    compaction_id: str | None = None


class _Params(msgspec.Struct, gc=False):
    update: _Update


class _Chunk(msgspec.Struct, gc=False):
    params: _Params
    method: str = ""


class Envelope(msgspec.Struct, gc=False):
    """An envelope whose parts are still JSON. A missing part is empty."""

    id: msgspec.Raw = NO_ID
    method: str | None = None
    params: msgspec.Raw = NO_ID
    result: msgspec.Raw = NO_ID
    error: msgspec.Raw = NO_ID

    @property
    def request_id(self) -> str:
        """The id as JSON, or "" for a notification."""
        name = bytes(self.id).decode("utf-8", "replace")
        return "" if name == "null" else name


_chunk_decoder = msgspec.json.Decoder(_Chunk)
_envelope_decoder = msgspec.json.Decoder(Envelope)


def read_chunk(envelope: bytes) -> TextChunk | None:
    """Return the text chunk of a ``session/update``, or None for any other envelope."""
    try:
        chunk = _chunk_decoder.decode(envelope)
    except DECODE_FAILURES:
        return None
    update = chunk.params.update
    content = update.content
    if chunk.method != "session/update" or content.type != "text" or content.text is None:
        return None
    return TextChunk(update.session_update, update.message_id or update.compaction_id, content.text)


def read_envelope(envelope: bytes) -> Envelope:
    """Decode any envelope.

    Raises:
        InvalidEnvelopeError: The envelope is not a JSON-RPC object.
    """
    try:
        found = _envelope_decoder.decode(envelope)
    except DECODE_FAILURES:
        found = _read_slowly(envelope)
    if found.method is None and not (found.id and (found.result or found.error)):
        raise InvalidEnvelopeError("neither a request, a notification nor a response")
    return found


def members(raw: msgspec.Raw) -> dict[str, Any]:
    """Return the object in a part, or an empty dict if it is not an object."""
    return jsonrpc.members(value(raw))


def value(raw: msgspec.Raw) -> Any:
    """Return the value of a part, or None if it is missing or invalid."""
    try:
        return loads(bytes(raw)) if raw else None
    except InvalidEnvelopeError:
        return None


def _read_slowly(envelope: bytes) -> Envelope:
    parts = load_object(envelope)
    method: Any = parts.get("method")
    if method is not None and not isinstance(method, str):
        raise InvalidEnvelopeError("method must be a string")
    raws = {
        name: msgspec.Raw(dumps(parts[name])) for name in ("id", "params", "result", "error") if name in parts
    }
    return Envelope(method=method, **raws)
