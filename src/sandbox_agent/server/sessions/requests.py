"""Checks of requests about sessions, made before anything is started."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from sandbox_agent.agents.launch import resolve
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.server.permissions.policies import check_policy
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads
from sandbox_agent.wire.sessions import CreateSessionRequest

MAX_ID = 256


def check_id(session_id: str) -> None:
    """Check the name of a session.

    Raises:
        InvalidRequestError: the name is empty, too long, or not printable.
    """
    if not session_id or len(session_id) > MAX_ID or not session_id.isprintable():
        raise InvalidRequestError(
            f"invalid request: a session id has 1 to {MAX_ID} characters, all of them printable"
        )


def check_create(session_id: str, request: CreateSessionRequest) -> str:
    """Check a create request as far as that needs no agent, and return the agent's working directory.

    Raises:
        InvalidRequestError: the id, a directory, or the permission rules are invalid, or the agent's mode
            contradicts the permission mode.
        ModeNotSupportedError: there is no such permission mode.
        UnsupportedAgentError: there is no such agent.
        AgentNotInstalledError: the agent is not installed.
    """
    check_id(session_id)
    check_policy(request)
    for name, value in (
        ("agentMode", request.agent_mode),
        ("model", request.model),
        ("variant", request.variant),
    ):
        if value is not None and not value.strip():
            raise InvalidRequestError(f"invalid request: {name} is empty: leave it out for the agent's own")
    resolve(request.agent)
    for directory in request.additional_directories or ():
        _check_directory("additionalDirectories", directory)
    if request.directory is None:
        return os.getcwd()  # noqa: PTH109 - a string is sent
    return _check_directory("directory", request.directory)


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


def check_prompt(prompt: list[dict[str, Any]]) -> None:
    """Check the content blocks of a prompt.

    Raises:
        InvalidRequestError: the prompt is empty, or a block has no type.
    """
    if not prompt or not all(isinstance(block.get("type"), str) for block in prompt):
        raise InvalidRequestError(
            "invalid request: a message is a text, or a list of ACP content blocks with a type each, "
            "and not empty"
        )


def digest_of(prompt: list[dict[str, Any]]) -> bytes:
    """Return a digest of a prompt that does not depend on the order of members."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()


def session_params(request: CreateSessionRequest, directory: str) -> dict[str, Any]:
    """Return the params of session/new that a request asks for.

    Args:
        request: the request that creates the session.
        directory: the agent's working directory.
    """
    params: dict[str, Any] = {"cwd": directory, "mcpServers": request.mcp_servers or []}
    if request.additional_directories:
        params["additionalDirectories"] = request.additional_directories
    return params


def settings_of(row: SessionRow) -> CreateSessionRequest:
    """Return the request that a session was created with."""
    try:
        return msgspec.convert(loads(row.settings or b"{}"), CreateSessionRequest)
    except (InvalidEnvelopeError, msgspec.ValidationError):
        return CreateSessionRequest(agent=row.agent)
