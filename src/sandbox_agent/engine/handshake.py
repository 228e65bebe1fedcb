"""What a client says to an agent first, and how it authenticates where that needs no user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

__all__ = ["auth_method", "initialize_params"]

_PROTOCOL_VERSION = 1
# Their credentials come from the agent's environment: nobody has to be asked.
_AUTH_METHODS = frozenset({"codex-api-key", "openai-api-key", "anthropic-api-key"})


def initialize_params(client: str) -> dict[str, Any]:
    """Return the params of ACP's initialize; the client offers no files and no terminals."""
    return {
        "protocolVersion": _PROTOCOL_VERSION,
        "clientCapabilities": {},
        "clientInfo": {"name": client, "version": "v1"},
    }


def auth_method(initialized: Mapping[str, Any]) -> str | None:
    """Return the method to authenticate with that the answer to initialize offers, or None."""
    offered: object = initialized.get("authMethods")
    for item in cast("list[object]", offered) if isinstance(offered, list) else []:
        method_id: Any = cast("dict[str, Any]", item).get("id") if isinstance(item, dict) else None
        if isinstance(method_id, str) and method_id in _AUTH_METHODS:
            return method_id
    return None
