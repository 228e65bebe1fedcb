"""JSON-RPC 2.0 envelopes; their params and results remain raw bytes (jsonrpc.org/specification)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from typing import Any, NoReturn, cast

import msgspec

NULL = b"null"
# The errors of msgspec on bytes that are not the expected JSON.
DECODE_FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class InvalidEnvelopeError(ValueError):
    """The bytes are not a JSON-RPC envelope; the message is the reason, in one line."""


# All heads without an id share this object, so that they can be found by identity.
NO_ID = msgspec.Raw()


class Head(msgspec.Struct, gc=False):
    """The decoded part of an envelope; the rest is not decoded.

    Attributes:
        id: the id's JSON bytes (``b'1'``, ``b'"a"'``), or empty if the envelope has no id.
        method: the method, or None in a response.
    """

    id: msgspec.Raw = NO_ID
    method: str | None = None

    @property
    def is_request(self) -> bool:
        """Whether the envelope is a request: it has a method, and an id that is not null."""
        return self.method is not None and bool(self.id) and bytes(self.id) != NULL

    @property
    def is_response(self) -> bool:
        """Whether the envelope is a response: it has an id and no method."""
        return self.method is None and bool(self.id)


_head_decoder = msgspec.json.Decoder(Head)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


def read_head(line: bytes) -> Head:
    """Decode an envelope's id and method and check that the whole line is JSON.

    Args:
        line: one JSON object as UTF-8 bytes, without its newline.

    Raises:
        InvalidEnvelopeError: it is not JSON, not an object, or its method is not a string.
    """
    try:
        head = _head_decoder.decode(line)
    except DECODE_FAILURES:
        return _read_head_slowly(line)
    if not line.isascii():
        _check_utf8(line)  # msgspec does not check the strings that it skips
    return head


def read_heads(lines: Sequence[bytes]) -> list[Head] | None:
    """Decode many envelopes at once, in a third of the time.

    Returns:
        A head for each line; None if a line is not a plain JSON object: read the lines one by one then.
    """
    if len(lines) == 1 and lines[0][-1:] == b"}":  # the usual case
        try:
            return [read_head(lines[0])]
        except InvalidEnvelopeError:
            return None
    data = b"\n".join(lines)
    # With "}" before and "{" after every line end, no object spans two lines.
    if data[:1] != b"{" or data[-1:] != b"}" or data.count(b"}\n{") != len(lines) - 1:
        return None
    try:
        if not data.isascii():
            data.decode("utf-8")
        heads = _head_decoder.decode_lines(data)
    except DECODE_FAILURES:
        return None
    return heads if len(heads) == len(lines) else None


def _check_utf8(line: bytes) -> None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidEnvelopeError(f"not UTF-8 at byte {error.start}") from None


def _read_head_slowly(line: bytes) -> Head:
    # msgspec rejects lone surrogates ("\ud800"), which JavaScript writes; the standard library accepts them.
    value = load_object(line)
    method: object = value.get("method")
    if method is not None and not isinstance(method, str):
        raise InvalidEnvelopeError("method must be a string")
    raw_id = msgspec.Raw(dumps(value["id"])) if "id" in value else NO_ID
    return Head(raw_id, method)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _null(_name: str) -> None:
    return None


def loads(data: bytes) -> Any:
    """Decode JSON; lone surrogates are accepted.

    Raises:
        InvalidEnvelopeError: the bytes are not UTF-8 JSON, or are nested too deeply.
    """
    try:
        return msgspec.json.decode(data)
    except DECODE_FAILURES:
        pass
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise InvalidEnvelopeError("nested too deeply") from None
    except ValueError as error:
        raise InvalidEnvelopeError(str(error)) from None


def load_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object as ``loads`` does.

    Raises:
        InvalidEnvelopeError: the bytes are not UTF-8 JSON, are nested too deeply, or are not an object.
    """
    value: object = loads(data)
    if not isinstance(value, dict):
        raise InvalidEnvelopeError(f"expected a JSON object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)


def members(value: object) -> dict[str, Any]:
    """Return an object's members, or an empty dict if the value is not an object."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def elements(value: object) -> list[Any]:
    """Return an array's elements, or an empty list if the value is not an array."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def replace_surrogates(text: str) -> str:
    """Return the text with surrogate pairs joined, and U+FFFD for each surrogate without the other half."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def dumps(value: Any) -> bytes:
    """Encode as compact JSON; lone surrogates are accepted, NaN and infinities become null."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value))
        return json.dumps(json.loads(text, parse_constant=_null), separators=(",", ":")).encode()


def replace_id(envelope: bytes, new_id: bytes) -> bytes:
    """Return the envelope with another id; the bytes of all other members stay the same.

    Raises:
        InvalidEnvelopeError: it is not a JSON object.
    """
    try:
        fields: dict[str, Any] = dict(_members_decoder.decode(envelope))
    except DECODE_FAILURES:
        fields = load_object(envelope)
    fields["id"] = msgspec.Raw(new_id)
    try:
        return _encoder.encode(fields)
    except UnicodeEncodeError:
        fields["id"] = loads(new_id)
        return dumps(fields)


def canonical_id(raw: bytes) -> bytes:
    """Return the canonical bytes of an id, because agents write ``1`` for ``1.0`` and unescape strings.

    Raises:
        InvalidEnvelopeError: the id is neither a string nor a finite number.
    """
    raw = bytes(raw)
    if raw.isdigit() or (raw[:1] == b'"' and b"\\" not in raw):
        return raw
    value = loads(raw)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) and not isfinite(value):
        raise InvalidEnvelopeError("id must be a finite number")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidEnvelopeError("id must be a string or a number")
    return dumps(value)
