"""From bytes or dicts to views, and never an exception: real agents break the schema.

What fits the schema is decoded in one step. What doesn't is taken apart as the schema's
``x-deserialize-default-on-error`` and ``x-deserialize-skip-invalid-items`` say: a bad optional field
counts as absent, a bad item of a list is left out, and null is an empty list.
"""

from __future__ import annotations

import types
import typing
from typing import Any, TypeVar, cast

import msgspec

from sandbox_agent.wire.acp.content import UnknownContent
from sandbox_agent.wire.acp.requests import PermissionRequest, PromptResponse
from sandbox_agent.wire.acp.updates import KnownUpdate, SessionUpdate, UnknownUpdate
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads

S = TypeVar("S", bound=msgspec.Struct)


class _Params(msgspec.Struct, frozen=True):
    update: msgspec.Raw = msgspec.Raw()


class _Envelope(msgspec.Struct, frozen=True):
    method: str = ""
    params: _Params = _Params()


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_update_decoder: msgspec.json.Decoder[KnownUpdate] = msgspec.json.Decoder(KnownUpdate)
_KINDS: dict[object, type[KnownUpdate]] = {kind.session_update: kind for kind in typing.get_args(KnownUpdate)}


def parse_update(update: bytes | dict[str, Any]) -> SessionUpdate:
    """Return the view of a ``session/update``'s ``update`` member.

    Args:
        update: the member, as JSON bytes or decoded.

    Returns:
        The view of its kind; UnknownUpdate where the kind isn't known or lacks what it requires.
    """
    try:
        if isinstance(update, dict):
            return msgspec.convert(update, cast("type[KnownUpdate]", KnownUpdate))
        return _update_decoder.decode(update)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        pass
    raw = _object(update)
    kind = raw.get("sessionUpdate")
    known = _KINDS.get(kind) if isinstance(kind, str) else None
    if known is not None:
        try:
            return _struct(known, raw)
        except _UnfitError:
            pass
    return UnknownUpdate(kind if isinstance(kind, str) else "", raw)


def read_update(envelope: bytes) -> SessionUpdate | None:
    """Return the update that an envelope carries, or None where it is no ``session/update``."""
    try:
        message = _envelope_decoder.decode(envelope)
    except (msgspec.DecodeError, RecursionError):
        members = _object(envelope)
        if members.get("method") != "session/update":
            return None
        return parse_update(_member(_member(members, "params"), "update"))
    return parse_update(bytes(message.params.update)) if message.method == "session/update" else None


def parse_permission_request(params: bytes | dict[str, Any]) -> PermissionRequest:
    """Return the view of a ``session/request_permission``'s params; what is missing is empty."""
    return _struct(PermissionRequest, _object(params))


def parse_prompt_response(result: bytes | dict[str, Any]) -> PromptResponse:
    """Return the view of a ``session/prompt``'s result; what is missing is empty."""
    return _struct(PromptResponse, _object(result))


class _UnfitError(Exception):
    """A required member is missing or of a wrong type."""


def _object(value: bytes | dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    try:
        decoded = loads(value)
    except InvalidEnvelopeError:
        return {}
    return cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}


def _member(members: dict[str, Any], name: str) -> dict[str, Any]:
    value = members.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _struct(kind: type[S], raw: dict[str, Any]) -> S:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name in raw:
            try:
                values[field.name] = _value(field.type, raw[field.encode_name])
            except _UnfitError:
                if field.required:
                    raise
        elif field.required:
            raise _UnfitError
    return kind(**values)


def _value(kind: Any, value: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        pass
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    for option in options:
        if typing.get_origin(option) is list:
            return _items(typing.get_args(option)[0], value)
    if not isinstance(value, dict):
        raise _UnfitError
    raw = cast("dict[str, Any]", value)
    structs = [option for option in options if _is_struct(option)]
    tag = raw.get("type")
    for option in structs:
        if len(structs) == 1 or (tag == option.__struct_config__.tag and option is not UnknownContent):
            try:
                return _struct(option, raw)
            except _UnfitError:
                break
    if UnknownContent in structs:
        return UnknownContent(tag if isinstance(tag, str) else "", raw)
    raise _UnfitError


def _items(kind: Any, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _UnfitError
    items: list[Any] = []
    for item in cast("list[Any]", value):
        try:
            items.append(_value(kind, item))
        except _UnfitError:
            continue
    return items


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
