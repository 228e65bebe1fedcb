"""Bodies of the HTTP contract; field names on the wire are those of the OpenAPI files."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "AcpServerInfo",
    "AcpServerListResponse",
    "AgentCapabilities",
    "AgentInfo",
    "AgentListResponse",
    "HealthResponse",
    "ProblemDetails",
    "RootResponse",
    "ServerStatusInfo",
]


class _Body(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A body: camelCase members, absent ones are left out, unknown ones are ignored."""


class RootResponse(_Body):
    """``GET /``: who answers, and where its documentation is."""

    name: str
    docs: str


class HealthResponse(_Body):
    """``GET /v1/health``.

    Attributes:
        status: "ok" while the server answers; clients wait for it.
        store: "degraded" while the store refuses, else absent.
        reason: why it refuses, in one line.
    """

    status: str
    store: str | None = None
    reason: str | None = None


class AcpServerInfo(_Body):
    """A live connection: its server id, its agent, when it was made (ms since the epoch)."""

    server_id: str
    agent: str
    created_at_ms: int


class AcpServerListResponse(_Body):
    """``GET /v1/acp``."""

    servers: list[AcpServerInfo]


class AgentCapabilities(msgspec.Struct, kw_only=True, frozen=True, rename="camel"):
    """What an agent can do, as the catalogue says."""

    plan_mode: bool = False
    permissions: bool = False
    questions: bool = False
    tool_calls: bool = False
    tool_results: bool = False
    text_messages: bool = False
    images: bool = False
    file_attachments: bool = False
    session_lifecycle: bool = False
    error_events: bool = False
    reasoning: bool = False
    status: bool = False
    command_execution: bool = False
    file_changes: bool = False
    mcp_tools: bool = False
    streaming_deltas: bool = False
    item_started: bool = False
    shared_process: bool = False


class ServerStatusInfo(_Body):
    """Whether a process of the agent runs ("running" or "stopped") and for how long (ms)."""

    status: str
    uptime_ms: int | None = None


class AgentInfo(_Body):
    """One agent: whether it can be started here, and with which options.

    ``config_options`` are as ACP's session/new gives them; ``config_error`` says why they could not be
    asked for.
    """

    id: str
    installed: bool
    credentials_available: bool
    capabilities: AgentCapabilities
    version: str | None = None
    path: str | None = None
    server_status: ServerStatusInfo | None = None
    config_options: list[dict[str, Any]] | None = None
    config_error: str | None = None


class AgentListResponse(_Body):
    """``GET /v1/agents``."""

    agents: list[AgentInfo]


class ProblemDetails(_Body):
    """RFC 9457; other members are extensions."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None
