"""``/v1/config``: the MCP servers and skills of a folder."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import InvalidRequestError, NotFoundError, PermissionDeniedError, StreamError
from sandbox_agent.server.configuration.files import MCP, SKILLS, Kind
from sandbox_agent.server.http.operations import (
    Answer,
    Operation,
    Parameter,
    read_body,
    read_text,
    require_json_body,
    text_schema,
)
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.configuration import McpLocalServer, McpRemoteServer, SkillsConfig
from sandbox_agent.wire.jsonrpc import DECODE_FAILURES

T = TypeVar("T")

MAX_NAME: Final = 256
_ERRORS: Final = (InvalidRequestError, PermissionDeniedError, StreamError)
_DIRECTORY = Parameter(
    "directory",
    "query",
    "The working directory of sessions: an absolute path, or one below the home of the server's user.",
    text_schema(least=1),
    required=True,
)


def _name(name: str, what: str) -> Parameter:
    return Parameter(name, "query", f"The name of the {what}.", text_schema(least=1, most=MAX_NAME), True)


_MCP_NAME, _SKILL_NAME = _name("mcpName", "MCP server"), _name("skillName", "skills")
_MCP: Final[dict[str, Any]] = {
    "oneOf": [
        {"$ref": f"#/components/schemas/{kind.__name__}"} for kind in (McpLocalServer, McpRemoteServer)
    ],
    "discriminator": {
        "propertyName": "type",
        "mapping": {
            "local": "#/components/schemas/McpLocalServer",
            "remote": "#/components/schemas/McpRemoteServer",
        },
    },
}


@Operation(
    "GET",
    "/v1/config/mcp",
    tag="config",
    parameters=(_DIRECTORY, _MCP_NAME),
    answers={200: Answer("The MCP server.", _MCP)},
    schemas=(McpLocalServer, McpRemoteServer),
    errors=(*_ERRORS, NotFoundError),
)
async def get_v1_config_mcp(request: Request) -> Response:
    """Return an MCP server that is configured for a folder."""
    return await _get(request, MCP, "mcpName", "MCP server")


@Operation(
    "PUT",
    "/v1/config/mcp",
    tag="config",
    parameters=(_DIRECTORY, _MCP_NAME),
    request_body=_MCP,
    answers={204: Answer("The MCP server is configured.")},
    errors=_ERRORS,
)
async def put_v1_config_mcp(request: Request) -> Response:
    """Configure an MCP server for a folder.

    Sessions that are opened in that folder from now on get it, besides those that the client passes. It is
    kept in `<directory>/.sandbox-agent/config/mcp.json`; the folder is made if necessary.
    """
    return await _put(request, MCP, "mcpName")


@Operation(
    "DELETE",
    "/v1/config/mcp",
    tag="config",
    parameters=(_DIRECTORY, _MCP_NAME),
    answers={204: Answer("The MCP server is not configured.")},
    errors=_ERRORS,
)
async def delete_v1_config_mcp(request: Request) -> Response:
    """Remove an MCP server from a folder's configuration. If it is not there, this has no effect."""
    return await _delete(request, MCP, "mcpName")


@Operation(
    "GET",
    "/v1/config/skills",
    tag="config",
    parameters=(_DIRECTORY, _SKILL_NAME),
    answers={200: Answer("The sources of the skills.", SkillsConfig)},
    errors=(*_ERRORS, NotFoundError),
)
async def get_v1_config_skills(request: Request) -> Response:
    """Return skills that are configured for a folder."""
    return await _get(request, SKILLS, "skillName", "skills")


@Operation(
    "PUT",
    "/v1/config/skills",
    tag="config",
    parameters=(_DIRECTORY, _SKILL_NAME),
    request_body=SkillsConfig,
    answers={204: Answer("The skills are configured.")},
    errors=_ERRORS,
)
async def put_v1_config_skills(request: Request) -> Response:
    """Configure skills for a folder.

    They are copied to where the agent looks for them before a session is opened in that folder. They are kept
    in `<directory>/.sandbox-agent/config/skills.json`; the folder is made if necessary.
    """
    return await _put(request, SKILLS, "skillName")


@Operation(
    "DELETE",
    "/v1/config/skills",
    tag="config",
    parameters=(_DIRECTORY, _SKILL_NAME),
    answers={204: Answer("The skills are not configured.")},
    errors=_ERRORS,
)
async def delete_v1_config_skills(request: Request) -> Response:
    """Remove skills from a folder's configuration. If they are not there, this has no effect."""
    return await _delete(request, SKILLS, "skillName")


async def _get(request: Request, kind: Kind[T], name: str, what: str) -> Response:
    directory, entry = _required(request, "directory"), _required(request, name)
    entries = await run_sync(state_of(request).configuration.read, directory, kind)
    if entry not in entries:
        raise NotFoundError(f"not found: no {what} with the name {entry!r} configured for {directory}")
    return json_response(entries[entry])


async def _put(request: Request, kind: Kind[T], name: str) -> Response:
    directory, entry = _required(request, "directory"), _required(request, name)
    require_json_body(request)
    state = state_of(request)
    body = await read_body(request, state.config.max_body_bytes)
    try:
        value = kind.parse(body)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"invalid request: {error}") from None
    except DECODE_FAILURES:
        raise InvalidRequestError("invalid request: the body is not JSON in UTF-8, or too deep") from None
    await run_sync(state.configuration.change, directory, kind, entry, value)
    return Response(status_code=204)


async def _delete(request: Request, kind: Kind[T], name: str) -> Response:
    directory, entry = _required(request, "directory"), _required(request, name)
    await run_sync(state_of(request).configuration.change, directory, kind, entry, None)
    return Response(status_code=204)


def _required(request: Request, name: str) -> str:
    value = read_text(request, name)
    if value is None:
        raise InvalidRequestError(f"invalid request: query parameter '{name}' is missing")
    if name != "directory" and len(value) > MAX_NAME:
        raise InvalidRequestError(f"invalid request: '{name}' has more than {MAX_NAME} characters")
    return value


OPERATIONS = (
    get_v1_config_mcp,
    put_v1_config_mcp,
    delete_v1_config_mcp,
    get_v1_config_skills,
    put_v1_config_skills,
    delete_v1_config_skills,
)
