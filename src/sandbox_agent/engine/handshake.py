"""What ACP leaves open: initialize, authentication without a user, the error of a lost session."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sandbox_agent.wire.jsonrpc import elements, members

_PROTOCOL_VERSION = 1
# Methods that read an API key from the agent's environment and need no user. They are tried where it is not
# known which credentials the agent has.
_KEY_METHODS = frozenset({"codex-api-key", "openai-api-key", "anthropic-api-key"})

# ACP has no code for it. Agents write a sentence, in the message or in the data.
_LOST_SESSION = re.compile(
    r"\bsession\b.{0,100}\b(?:not found|unknown|not exist|no longer exists)\b"
    r"|\b(?:unknown|no such) session\b",
    re.IGNORECASE,
)
# Longer texts are output of tools or models.
_LOST_SESSION_CHARS = 1_000


def initialize_params(client: str, *, answers_questions: bool) -> dict[str, Any]:
    """Return the params of ACP's initialize.

    The client offers no files and no terminals: agents read and write by themselves.

    Args:
        client: its name.
        answers_questions: whether it answers ``elicitation/create``. Agents ask questions only then.
    """
    capabilities: dict[str, Any] = {
        "session": {"notices": {}, "compaction": {}, "configOptions": {"boolean": {}}},
        "plan": {},
    }
    if answers_questions:
        capabilities["elicitation"] = {"form": {}}
    return {
        "protocolVersion": _PROTOCOL_VERSION,
        "clientCapabilities": capabilities,
        "clientInfo": {"name": client, "version": "v1"},
    }


def offered_methods(initialized: Mapping[str, Any]) -> list[str]:
    """Return the ids of the authentication methods in the result of initialize, in the agent's order."""
    ids = (members(item).get("id") for item in elements(initialized.get("authMethods")))
    return [method_id for method_id in ids if isinstance(method_id, str)]


def auth_method(offered: Sequence[str], usable: Collection[str] | None) -> str | None:
    """Return the authentication method to use, or None.

    Args:
        offered: the methods that the agent offers.
        usable: those whose credentials are there; None if that is not known.
    """
    return next((each for each in offered if each in (_KEY_METHODS if usable is None else usable)), None)


def credentials_hint(sets: Sequence[Sequence[str]]) -> str:
    """Return what to do when an agent has no credentials; empty if that is not known.

    Args:
        sets: the sets of variables, with all of which the agent starts; ``NAME=VALUE`` names a value.
    """
    names = [" with ".join(each) for each in sets]
    if len(names) > 2:
        names = [f"{', '.join(names[:-1])},", names[-1]]
    return f"set {' or '.join(names)} in the environment of the server" if names else ""


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
