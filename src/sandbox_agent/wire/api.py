"""Bodies of the HTTP contract; field names on the wire are those of the OpenAPI files."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from sandbox_agent.wire import objects
from sandbox_agent.wire.serial import Serializable, short_repr, to_time

__all__ = [
    "IDLE_EXIT_CODE",
    "AcpClientInfo",
    "AcpServerInfo",
    "AcpServerListResponse",
    "AgentCapabilities",
    "AgentId",
    "AgentInfo",
    "AgentInstallArtifact",
    "AgentInstallProgress",
    "AgentInstallRequest",
    "AgentInstallResponse",
    "AgentListResponse",
    "HealthResponse",
    "KnownAgent",
    "ProblemDetails",
    "RootResponse",
    "ServerStatusInfo",
    "TicketRequest",
    "TicketResponse",
]

# The exit code of a server that ends by --exit-when-idle, by which a provider knows why its sandbox stopped.
IDLE_EXIT_CODE = 75


if TYPE_CHECKING:
    _Option = objects.ConfigOption
else:
    _Option = dict[str, Any]  # what msgspec decodes; __post_init__ converts it


# The agents that the catalogue has; a server may know more.
KnownAgent: TypeAlias = Literal[
    "amp",
    "claude",
    "codex",
    "copilot",
    "cursor",
    "deepagents",
    "gemini",
    "goose",
    "hermes",
    "kimi",
    "mock",
    "opencode",
    "pi",
    "qwen",
]
AgentId: TypeAlias = KnownAgent | str


class Body(Serializable, msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A body with camelCase members. Members with default values are omitted; unknown ones are ignored."""


class RootResponse(Body):
    """``GET /``: the name of the server, and the URL of its documentation."""

    name: str
    docs: str


class HealthResponse(Body):
    """``GET /v1/health``.

    Attributes:
        status: "ok" while the server responds; clients wait for it.
        store: "degraded" while the store fails, otherwise absent.
        reason: why the store fails, in one line.
    """

    status: str
    store: str | None = None
    reason: str | None = None


class AcpClientInfo(Body):
    """A client of a connection and the number of its open streams.

    ``name`` is absent for all clients without a name.
    """

    streams: int
    name: str | None = None


class AcpUsageInfo(Body):
    """What the processes of a connection's agent use.

    Attributes:
        processes: how many there are: the agent and its tools.
        memory_bytes: their resident memory; what they share counts for each of them.
        cpu_ms: their processor time, in milliseconds.
    """

    processes: int
    memory_bytes: int
    cpu_ms: int


class AcpServerInfo(Body):
    """A live connection.

    Attributes:
        server_id: its id.
        agent: the agent's id.
        created_at_ms: its creation time, in milliseconds since the epoch.
        clients: those that have used it; absent on servers that do not report them.
        idle_ms: how long no client has used it and no turn has run; absent while that is not so.
        usage: what its processes use, if that was asked for and is known.
    """

    server_id: str
    agent: str
    created_at_ms: int
    clients: list[AcpClientInfo] | None = None
    idle_ms: int | None = None
    usage: AcpUsageInfo | None = None

    @property
    def created_time(self) -> datetime:
        """``created_at_ms`` as a datetime in UTC."""
        return to_time(self.created_at_ms)


class OpenAcpRequest(Body, kw_only=True):
    """``PUT /v1/acp/{server_id}``.

    Attributes:
        agent: the agent's id.
        env: variables of this agent, besides those that agents inherit; no response has them.
    """

    agent: str
    env: dict[str, str] | None = None


class AcpServerListResponse(Body):
    """``GET /v1/acp``."""

    servers: list[AcpServerInfo]


class AgentCapabilities(Serializable, msgspec.Struct, kw_only=True, frozen=True, rename="camel"):
    """The capabilities of an agent, from the catalogue."""

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


class ServerStatusInfo(Body):
    """Whether a process of the agent runs ("running" or "stopped") and for how long (ms)."""

    status: str
    uptime_ms: int | None = None


class AuthMethodInfo(Body):
    """A way to give the agent its credentials without a user.

    ``method`` is an id of ACP's ``authenticate``, ``variables`` are the environment variables any of which
    holds the credentials, and ``satisfied`` says whether one is set. The agent uses a ``required`` method's
    credentials only after ``authenticate`` was called, which the SDK and the server do.
    """

    method: str
    variables: list[str]
    satisfied: bool
    required: bool = False


class AgentInfo(Body):
    """One agent: whether it can be started here, and with which options.

    ``config_options`` have the shape of ACP's session/new; ``config_error`` says why they could not be read.
    ``package`` and ``pinned_version`` are what an installation installs. ``credential_variables`` are sets of
    environment variables, with all of which of one set the agent starts; ``NAME=VALUE`` names a value.
    ``permission_modes`` has the agent's
    modes that each permission mode stands for, best first; "#name" is the end of an id. With an empty list,
    the agent's requests alone are decided. A permission mode that is not in there is refused. It is absent if
    the agent's modes are not known.
    """

    id: str
    installed: bool
    credentials_available: bool
    capabilities: AgentCapabilities
    version: str | None = None
    path: str | None = None
    server_status: ServerStatusInfo | None = None
    config_options: list[_Option] | None = None
    config_error: str | None = None
    package: str | None = None
    pinned_version: str | None = None
    auth_methods: list[AuthMethodInfo] | None = None
    credential_variables: list[list[str]] | None = None
    permission_modes: dict[str, list[str]] | None = None

    def __post_init__(self) -> None:
        """Make the options' members attributes, too."""
        if self.config_options is not None:
            self.config_options = [objects.ConfigOption(option) for option in self.config_options]

    def __repr__(self) -> str:
        """Return what distinguishes agents."""
        return short_repr(self, "id", "installed", "version", "credentials_available")


class AgentInstallRequest(Body):
    """``POST /v1/agents/{agent}/install``.

    ``agent_process_version`` is the version of the package that speaks ACP, ``agent_version`` that of the
    agent's own package, where it is another one. Without them, the versions of the catalogue are installed.
    """

    reinstall: bool | None = None
    agent_version: str | None = None
    agent_process_version: str | None = None


class AgentInstallArtifact(Body):
    """What was installed.

    ``kind`` is "agent_process" for the program that speaks ACP, or "native_agent"; ``source`` is "npm",
    "pypi", "archive", "builtin", or "local_path" for a launcher that another program wrote.
    """

    kind: str
    path: str
    source: str
    version: str | None = None


class AgentInstallResponse(Serializable, msgspec.Struct, omit_defaults=True):
    """Whether the agent was installed before, and what is installed. The first name is snake_case."""

    already_installed: bool
    artifacts: list[AgentInstallArtifact]


class AgentInstallProgress(Body):
    """A ``progress`` event of an installation.

    ``phase`` is "waiting" (another process installs the agent), "installing", "starting" or "installed";
    ``done`` of ``total`` packages were downloaded.
    """

    phase: str
    done: int = 0
    total: int | None = None


class AgentListResponse(Body):
    """``GET /v1/agents``."""

    agents: list[AgentInfo]


class ProblemDetails(Body):
    """RFC 9457; other members are extensions."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None


class TicketRequest(Body):
    """``POST /v1/tickets``.

    Attributes:
        scope: "events" for server-sent events, "terminal" for a WebSocket.
        path: the path of the stream with its query, as in its URL but without the ticket.
    """

    scope: Literal["events", "terminal"]
    path: str


class TicketResponse(Body):
    """The ticket that was created.

    Attributes:
        ticket: the value of the query parameter ``ticket``.
        expires_at: when it expires if it is not used, in RFC 3339.
    """

    ticket: str
    expires_at: str
