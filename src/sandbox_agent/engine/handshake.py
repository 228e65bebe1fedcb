"""The ACP handshake: the params of initialize, and authentication without a user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_PROTOCOL_VERSION = 1
# Methods that read credentials from the agent's environment and need no user.
_AUTH_METHODS = frozenset({"codex-api-key", "openai-api-key", "anthropic-api-key"})


def initialize_params(client: str) -> dict[str, Any]:
    """Return the params of ACP's initialize. The client offers no files and no terminals."""
    return {
        "protocolVersion": _PROTOCOL_VERSION,
        "clientCapabilities": {},
        "clientInfo": {"name": client, "version": "v1"},
    }


def auth_method(initialized: Mapping[str, Any]) -> str | None:
    """Return the authentication method to use, from those that the agent offers, or None."""
    offered: object = initialized.get("authMethods")
    for item in cast("list[object]", offered) if isinstance(offered, list) else []:
        method_id: Any = cast("dict[str, Any]", item).get("id") if isinstance(item, dict) else None
        if isinstance(method_id, str) and method_id in _AUTH_METHODS:
            return method_id
    return None
