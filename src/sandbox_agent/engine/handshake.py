"""What ACP leaves open: initialize, authentication without a user, the error of a lost session."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from sandbox_agent.wire.jsonrpc import members

_PROTOCOL_VERSION = 1
# Methods that read credentials from the agent's environment and need no user.
_AUTH_METHODS = frozenset({"codex-api-key", "openai-api-key", "anthropic-api-key"})

# ACP has no code for it. Agents write a sentence, in the message or in the data.
_LOST_SESSION = re.compile(
    r"\bsession\b.{0,100}\b(?:not found|unknown|not exist|no longer exists)\b"
    r"|\b(?:unknown|no such) session\b",
    re.IGNORECASE,
)
# Longer texts are output of tools or models.
_LOST_SESSION_CHARS = 1_000


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


def is_lost_session_error(error: object) -> bool:
    """Return whether the ``error`` of a response says that the agent does not know the session."""
    fields = members(error)
    return is_lost_session(str(fields.get("message") or error), fields.get("data"))


def is_lost_session(message: str, data: object = None) -> bool:
    """Return whether a JSON-RPC error says that the agent does not know the session.

    Args:
        message: the error's message.
        data: the error's data.
    """
    text = f"{message}\n{data}"
    return len(text) <= _LOST_SESSION_CHARS and _LOST_SESSION.search(text) is not None
