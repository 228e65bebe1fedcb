"""The server's settings, and the check of its address."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox_agent.agents.environment import AgentEnvironment
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.runtime.limits import Limits

if TYPE_CHECKING:
    from sandbox_agent.egress.relay import Where

DEFAULT_PORT = 2468
CANCEL_GRACE = 10.0
IDLE_TIMEOUT = 1800.0


@dataclass(frozen=True, slots=True)
class CorsConfig:
    """Cross-origin rules; off while ``allow_origins`` is empty."""

    allow_origins: tuple[str, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    allow_credentials: bool = False


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings of ``sandbox-agent server``.

    Attributes:
        host: address to bind.
        port: port to bind; 0 uses a free one.
        token: bearer token; None for no authentication.
        store: "memory", "sqlite:PATH", "postgres://…" or "redis://…"; it may hold a password.
        store_namespace: this server's sessions in a shared database; None for a namespace of this machine.
        store_wait: seconds to wait for a SQLite store that another server still uses.
        retain_days: events and envelopes older than this are erased; 0 keeps them.
        retain_bytes: the oldest are erased while the store is larger; 0 keeps them.
        feed_memory_bytes: bound on what all feeds hold in memory before they spill to the store.
        max_body_bytes: bound on the body of a request.
        max_head_bytes: bound on the head of a request.
        max_headers: bound on its headers.
        max_target_bytes: bound on its target, the path with the query.
        max_connections: bound on open connections; 0 for what the limit of open files allows.
        head_timeout: seconds in which a head has to be received.
        write_timeout: seconds after which a client that reads nothing loses its connection.
        max_upload_bytes: bound on an archive of files that is uploaded.
        fs_roots: the folders whose files the API gives access to; none for all.
        request_timeout: seconds that an agent has to respond to a request other than session/prompt.
        cancel_grace: seconds that the agent of a session has to end a turn that was cancelled; then it is
            stopped.
        acp_idle_timeout: seconds after which an idle connection of named clients is ended; 0 for never.
        acp_idle_timeout_all: whether that includes connections that clients without a name have used.
        session_idle_timeout: seconds after which the agent of an idle session is stopped; 0 for never.
        exit_when_idle: seconds without a turn and a client's connection after which the server ends; 0 for
            never.
        require_preinstall: whether an agent that is not installed is refused; else its first use installs it.
        uds: path of a socket to bind instead of host and port, or None.
        agent_environment: what agents inherit, and the user as whom they run.
        agent_limits: what the processes of each agent may use together.
        egress_proxy: where the proxy of the sandbox listens, which agents use; None without one.
        otel: whether spans of turns and tool calls are sent to an OpenTelemetry collector.
        otel_content: whether they have prompts, answers, arguments and results.
        allow_hosts: names besides loopback under which a server without a token is reached.
        cors: cross-origin rules.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = None
    store: str = field(default="memory", repr=False)
    store_namespace: str | None = None
    store_wait: float = 0
    retain_days: float = 0
    retain_bytes: int = 0
    feed_memory_bytes: int = 32 * 1024 * 1024
    max_body_bytes: int = 64 * 1024 * 1024
    max_head_bytes: int = 64 * 1024
    max_headers: int = 100
    max_target_bytes: int = 16 * 1024
    max_connections: int = 0
    head_timeout: float = 20.0
    write_timeout: float = 60.0
    max_upload_bytes: int = 1024 * 1024 * 1024
    fs_roots: tuple[Path, ...] = ()
    request_timeout: float = 120.0
    cancel_grace: float = CANCEL_GRACE
    acp_idle_timeout: float = IDLE_TIMEOUT
    acp_idle_timeout_all: bool = False
    session_idle_timeout: float = IDLE_TIMEOUT
    exit_when_idle: float = 0
    require_preinstall: bool = False
    uds: Path | None = None
    agent_environment: AgentEnvironment = field(default_factory=AgentEnvironment)
    agent_limits: Limits = field(default_factory=Limits)
    egress_proxy: Where | None = None
    otel: bool = False
    otel_content: bool = False
    allow_hosts: tuple[str, ...] = ()
    cors: CorsConfig = field(default_factory=CorsConfig)

    @property
    def is_local_only(self) -> bool:
        """Whether the server has no token and is reached by all programs of this machine, browsers too."""
        return self.token is None and self.uds is None and _is_loopback(self.host)


def check_binding(host: str, *, token: str | None, no_token: bool) -> None:
    """Refuse an address that other machines can reach if no choice about authentication was made.

    Raises:
        InvalidRequestError: the host isn't loopback, and neither a token nor --no-token is given.
    """
    if token or no_token or _is_loopback(host):
        return
    raise InvalidRequestError(
        f"binding {host} would let anyone who reaches it run agents here: give --token TOKEN "
        "(or SANDBOX_AGENT_TOKEN), or --no-token if a proxy authenticates requests"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
