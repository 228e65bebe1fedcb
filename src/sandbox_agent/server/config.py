"""The server's settings, checked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from sandbox_agent.errors import InvalidRequestError

__all__ = ["DEFAULT_PORT", "CorsConfig", "ServerConfig", "check_binding"]

DEFAULT_PORT = 2468


@dataclass(frozen=True, slots=True)
class CorsConfig:
    """Cross-origin rules; off while ``allow_origins`` is empty."""

    allow_origins: tuple[str, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    allow_credentials: bool = False


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What ``sandbox-agent server`` was told.

    Attributes:
        host: address to bind.
        port: port to bind; 0 takes a free one.
        token: bearer token, or None for no authentication.
        store: "memory", "sqlite:PATH", "postgres://…" or "redis://…"; it may hold a password.
        store_namespace: which part of a shared database; None is this server's own.
        retain_days: events and envelopes older than this are erased; 0 keeps them.
        retain_bytes: the oldest are erased while the store is larger; 0 keeps them.
        feed_memory_bytes: bound on what all feeds hold in memory before they spill to the store.
        max_body_bytes: bound on a request's body.
        request_timeout: seconds an agent has to answer a request other than session/prompt.
        cors: cross-origin rules.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = None
    store: str = field(default="memory", repr=False)
    store_namespace: str | None = None
    retain_days: float = 0
    retain_bytes: int = 0
    feed_memory_bytes: int = 32 * 1024 * 1024
    max_body_bytes: int = 64 * 1024 * 1024
    request_timeout: float = 120.0
    cors: CorsConfig = field(default_factory=CorsConfig)


def check_binding(host: str, *, token: str | None, no_token: bool) -> None:
    """Refuse to serve other machines without a word about authentication.

    Raises:
        InvalidRequestError: the host isn't loopback and neither a token nor --no-token is given.
    """
    if token or no_token or _is_loopback(host):
        return
    raise InvalidRequestError(
        f"binding {host} would let anyone who reaches it run agents here: give --token TOKEN "
        "(or SANDBOX_AGENT_TOKEN), or --no-token if something in front of it checks"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
