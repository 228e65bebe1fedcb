"""Bodies of the HTTP contract about MCP servers and skills; field names are those of the OpenAPI files.

The files ``mcp.json`` and ``skills.json`` hold the same objects by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from sandbox_agent.wire.api import Body
from sandbox_agent.wire.serial import short_repr

__all__ = [
    "McpLocalServer",
    "McpOAuth",
    "McpRemoteServer",
    "McpServerConfig",
    "SkillSource",
    "SkillsConfig",
    "parse_mcp_server",
    "parse_skills",
]

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


def _no_arguments() -> list[str]:
    # The published server always writes ``args``; msgspec would omit a plain empty list.
    return []


class McpLocalServer(Body, tag_field="type", tag="local"):
    """An MCP server that an agent starts, and talks to over stdin and stdout.

    Attributes:
        command: the program, or a list of the program and its first arguments.
        args: its (further) arguments.
        env: variables for it.
        cwd: its working directory; a relative path is below the session's.
        enabled: false: sessions do not get it.
        timeout_ms: kept for clients; ACP can't pass it to agents.
    """

    command: str | list[str]
    args: list[str] = msgspec.field(default_factory=_no_arguments)
    env: dict[str, str] | None = None
    cwd: str | None = None
    enabled: bool | None = None
    timeout_ms: _Count | None = None

    def __repr__(self) -> str:
        """Return what is not secret."""
        return short_repr(self, "command", "args", "cwd", "enabled")


class McpOAuth(Body):
    """How an MCP server authorizes by OAuth. It is kept for clients; ACP can't pass it to agents.

    Attributes:
        client_id: the id of a registered client.
        client_secret: its secret.
        scope: what is asked for.
    """

    client_id: str | None = None
    client_secret: str | None = None
    scope: str | None = None

    def __repr__(self) -> str:
        """Return what is not secret."""
        return short_repr(self, "client_id", "scope")


class McpRemoteServer(Body, tag_field="type", tag="remote"):
    """An MCP server that an agent reaches over HTTP.

    Attributes:
        url: its URL.
        transport: "http" (streamable HTTP, the default) or "sse".
        headers: headers of each request.
        bearer_token_env_var: the agent's variable whose value is sent as ``Authorization: Bearer``.
        env_headers: by header, the agent's variable whose value is sent.
        oauth: how it authorizes by OAuth; false: it does not.
        enabled: false: sessions do not get it.
        timeout_ms: kept for clients; ACP can't pass it to agents.
    """

    url: str
    headers: dict[str, str] | None = None
    bearer_token_env_var: str | None = None
    env_headers: dict[str, str] | None = None
    oauth: McpOAuth | bool | None = None
    enabled: bool | None = None
    timeout_ms: _Count | None = None
    transport: Literal["http", "sse"] | None = None

    def __repr__(self) -> str:
        """Return what is not secret."""
        return short_repr(self, "url", "transport", "enabled")


McpServerConfig: TypeAlias = McpLocalServer | McpRemoteServer


class SkillSource(Body):
    """Where skills come from.

    Attributes:
        type: "github", "git" or "local".
        source: ``owner/repository``, the URL of a repository, or a folder of the sandbox.
        skills: the names of the skills to use; None for all.
        ref: a branch, tag or commit; None for the default branch.
        subpath: the folder of the source that has the skills; None for all of it.
    """

    type: str
    source: str
    skills: list[str] | None = None
    ref: str | None = None
    subpath: str | None = None


class SkillsConfig(Body):
    """Skills by their sources."""

    sources: list[SkillSource]


# Other names of the types, which the published server reads, too.
_MCP_TYPES = {"stdio": "local", "http": "remote"}


def parse_mcp_server(data: bytes) -> McpServerConfig:
    """Return an MCP server of a request's body or of ``mcp.json``.

    Raises:
        msgspec.ValidationError: a member is missing or invalid.
        msgspec.DecodeError: it is not JSON.
    """
    fields: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    kind: object = fields.get("type")
    if isinstance(kind, str):
        fields["type"] = _MCP_TYPES.get(kind, kind)
    return msgspec.convert(fields, type=McpLocalServer | McpRemoteServer)


def parse_skills(data: bytes) -> SkillsConfig:
    """Return the skills of a request's body or of ``skills.json``.

    Raises:
        msgspec.ValidationError: a member is missing or invalid.
        msgspec.DecodeError: it is not JSON.
    """
    return msgspec.json.decode(data, type=SkillsConfig)
