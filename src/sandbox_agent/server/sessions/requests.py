"""Checks of requests about sessions, made before anything is started."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec

from sandbox_agent.agents.environment import check_variables
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.runtime.user import User
from sandbox_agent.server.permissions.policies import check_policy
from sandbox_agent.server.sessions.settings import OPTION_MEMBERS
from sandbox_agent.wire.sessions import MAX_BLOCKS, MAX_OPTIONS, MAX_TEXT, CreateSessionRequest

MAX_ID = 256
# The required members of ACP's content blocks. Blocks of unknown types are accepted.
_REQUIRED_MEMBERS: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "image": {"data": str, "mimeType": str},
    "audio": {"data": str, "mimeType": str},
    "resource_link": {"uri": str, "name": str},
    "resource": {"resource": dict},
}


def check_create(session_id: str, request: CreateSessionRequest) -> str:
    """Check a create request as far as that needs no agent, and return the agent's working directory.

    Raises:
        InvalidRequestError: the id, a member or the permission rules are invalid, or the agent's mode
            contradicts the permission mode.
        ModeNotSupportedError: there is no such permission mode.
    """
    if not session_id or len(session_id) > MAX_ID or not session_id.isprintable():
        raise InvalidRequestError(
            f"invalid request: a session id has 1 to {MAX_ID} characters, all of them printable"
        )
    for name in ("agent", "agent_mode", "permission_mode", "model", "variant", "agent_version", "directory"):
        value: str | None = getattr(request, name)
        if value is not None and (len(value) > MAX_TEXT or not value.isprintable()):
            raise InvalidRequestError(
                f"invalid request: {name} must be at most {MAX_TEXT} printable characters"
            )
    if not request.agent:
        raise InvalidRequestError("invalid request: agent must be the id of an agent")
    if request.title is not None and len(request.title) > MAX_TEXT:
        raise InvalidRequestError(f"invalid request: title must be at most {MAX_TEXT} characters")
    check_policy(request)
    check_variables(request.env or {})
    for name, value in (
        ("agentMode", request.agent_mode),
        ("model", request.model),
        ("variant", request.variant),
    ):
        if value is not None and not value.strip():
            raise InvalidRequestError(f"invalid request: {name} is empty: leave it out for the agent's own")
    _check_options(request.config_options or {})
    for directory in request.additional_directories or ():
        _check_directory("additionalDirectories", directory)
    if request.directory is None:
        return os.getcwd()  # noqa: PTH109 - a string is sent
    return _check_directory("directory", request.directory)


def _check_options(options: Mapping[str, str | bool]) -> None:
    if len(options) > MAX_OPTIONS:
        raise InvalidRequestError(f"invalid request: configOptions has at most {MAX_OPTIONS} options")
    for config_id, value in options.items():
        if config_id in OPTION_MEMBERS:
            member = OPTION_MEMBERS[config_id]
            raise InvalidRequestError(
                f"invalid request: configOptions has '{config_id}', which is set by {member}: use that"
            )
        for text in (config_id, str(value)):
            if not text.strip() or len(text) > MAX_TEXT or not text.isprintable():
                raise InvalidRequestError(
                    f"invalid request: the ids and values of configOptions must be 1 to {MAX_TEXT} printable "
                    "characters"
                )


def _check_directory(name: str, directory: str) -> str:
    folder = Path(directory)
    try:
        usable = folder.is_absolute() and folder.is_dir()
    except (OSError, ValueError):
        usable = False
    if not usable:
        raise InvalidRequestError(
            f"invalid request: {name} must be an absolute path of a folder that exists, not {directory!r}"
        )
    return str(folder)


async def check_access(user: User, directories: Iterable[str]) -> None:
    """Check that agents, which run as this user, can work in their directories.

    Raises:
        InvalidRequestError: they can't.
    """
    for directory in directories:
        if not await anyio.to_thread.run_sync(user.can_enter, directory):
            raise InvalidRequestError(
                f"invalid request: agents run as the user {user.name!r}, who can't open {directory!r}: give "
                "that user access, or choose another directory"
            )


def check_prompt(message: list[dict[str, Any]]) -> None:
    """Check the content blocks of a message.

    Raises:
        InvalidRequestError: it is empty, or a block is invalid.
    """
    if not message:
        raise InvalidRequestError("invalid request: the message is empty")
    if len(message) > MAX_BLOCKS:
        raise InvalidRequestError(f"invalid request: a message has at most {MAX_BLOCKS} content blocks")
    for number, block in enumerate(message):
        kind: object = block.get("type")
        if not isinstance(kind, str):
            raise InvalidRequestError(
                f"invalid request: message[{number}] is not an ACP content block: it has no type"
            )
        for member, expected in _REQUIRED_MEMBERS.get(kind, {}).items():
            if not isinstance(block.get(member), expected):
                what = "an object" if expected is dict else "a string"
                raise InvalidRequestError(
                    f"invalid request: message[{number}].{member} of a block of type {kind} must be {what}"
                )
    try:
        msgspec.json.encode(message)
    except (RecursionError, ValueError, OverflowError):
        raise InvalidRequestError("invalid request: the message is nested too deeply") from None


def digest_of(prompt: list[dict[str, Any]]) -> bytes:
    """Return a digest of a prompt that does not depend on the order of members."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()


def session_params(request: CreateSessionRequest | None, directory: str) -> dict[str, Any]:
    """Return the params of session/new, with what the request that creates the session asks for."""
    params: dict[str, Any] = {"cwd": directory, "mcpServers": []}
    if request is not None:
        params["mcpServers"] = request.mcp_servers or []
        if request.additional_directories:
            params["additionalDirectories"] = request.additional_directories
    return params
