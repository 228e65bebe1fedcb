"""Adapts client envelopes to agents that deviate from ACP."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

_Members = dict[str, Any]
_decode_members: Callable[[bytes], _Members] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_DEFAULT_VERSION = 1


def adapt(agent_id: str, method: str | None, envelope: bytes) -> bytes:
    """Return the envelope as the agent expects it. For most agents and methods this is the same object."""
    quirks = _QUIRKS.get(agent_id)
    if quirks is None or method is None:
        return envelope
    change = quirks.get(method)
    return envelope if change is None else _with_params(envelope, change)


def _with_params(envelope: bytes, change: Callable[[_Members], bool]) -> bytes:
    try:
        members = _decode_members(envelope)
        params = _decode_members(members["params"]) if "params" in members else {}
        changed = change(params)
    except (msgspec.DecodeError, RecursionError):
        return envelope  # the agent reports the error best
    if not changed:
        return envelope
    members["params"] = params
    return _encode(members)


def _number_version(params: _Members) -> bool:
    """Replace a protocolVersion that is a string: pi-acp rejects it."""
    raw = bytes(params.get("protocolVersion", b""))
    if not raw.startswith(b'"'):
        return False
    number = re.match(r"\d{1,4}(?!\d)", msgspec.json.decode(raw))
    version = int(number[0]) if number else _DEFAULT_VERSION
    # Other protocols use a date as their version. ACP versions are small numbers.
    params["protocolVersion"] = version if version < 1000 else _DEFAULT_VERSION
    return True


def _list_mcp_servers(params: _Members) -> bool:
    """Add the member mcpServers: pi-acp rejects params without it."""
    if "mcpServers" in params:
        return False
    params["mcpServers"] = []
    return True


_QUIRKS: dict[str, dict[str, Callable[[_Members], bool]]] = {
    "pi": {
        "initialize": _number_version,
        "session/new": _list_mcp_servers,
        "session/load": _list_mcp_servers,
        "session/resume": _list_mcp_servers,
    },
}
