"""The keyword arguments that several methods of SandboxAgent share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import httpx2

from sandbox_agent.client.permissions import PermissionPolicy
from sandbox_agent.engine.permissions import PermissionMode
from sandbox_agent.persist.base import SessionPersistDriver


class ClientOptions(TypedDict, total=False):
    """Keyword arguments of ``connect`` and ``start``.

    Attributes:
        token: the server's bearer token; ``start`` asks the provider if it is None.
        headers: HTTP headers of every request.
        transport: an httpx2 transport that sends the requests; closed with the client.
        persist: where sessions and events are stored (default: in memory): a driver, which is not closed with
            the client, or a store URL or path such as "sqlite:agent.db", whose driver is.
        replay_max_events: how many events of history a restored session is given, 50 by default.
        replay_max_chars: the same limit in characters, 12,000 by default.
        skip_health_check: send requests without waiting until the server is healthy.
        health_timeout: how long to wait for a healthy server, in seconds, 120 by default; None waits forever.
    """

    token: str | None
    headers: Mapping[str, str] | None
    transport: httpx2.AsyncBaseTransport | None
    persist: SessionPersistDriver | str | os.PathLike[str] | None
    replay_max_events: int
    replay_max_chars: int
    skip_health_check: bool
    health_timeout: float | None


class SessionOptions(TypedDict, total=False):
    """Keyword arguments of ``create_session`` and ``resume_or_create_session``.

    Attributes:
        cwd: the agent's working directory on the server's machine; default: the provider's, else the current
            directory if the server's URL is one of this machine, else "/".
        model: see ``Session.set_model``.
        mode: see ``Session.set_mode``.
        thought_level: see ``Session.set_thought_level``.
        mcp_servers: MCP servers in ACP's shape; ``env`` and ``headers`` may also be dicts.
        session_init: params of session/new; they take precedence over ``cwd`` and ``mcp_servers``.
        additional_directories: more directories that the agent may work in, in ACP's params of session/new.
        permission_mode: what the session may do: "ask", "accept_edits", "allow", "plan" or "read_only". It
            decides permission requests before any listener, and sets the agent's mode that it stands for.
        permission_policy: how permission requests are answered when there is no listener: a permission
            mode, a reply ("once", "always", "reject"), or a function of the request.
    """

    cwd: str | os.PathLike[str] | None
    model: str | None
    mode: str | None
    thought_level: str | None
    mcp_servers: Sequence[Mapping[str, Any]] | None
    additional_directories: Sequence[str | os.PathLike[str]] | None
    session_init: Mapping[str, Any] | None
    permission_mode: PermissionMode | None
    permission_policy: PermissionPolicy | None


def check_keywords(options: Mapping[str, object], kind: type, function: str) -> None:
    """Raise the TypeError of a call with a keyword that the options do not have."""
    for name in options.keys() - kind.__annotations__.keys():
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def check_client_options(options: ClientOptions, function: str) -> None:
    """Raise the TypeError of a call with an unknown keyword or an invalid store."""
    check_keywords(options, ClientOptions, function)
    persist = cast("object", options.get("persist"))
    if persist is not None and not isinstance(persist, SessionPersistDriver | str | os.PathLike):
        raise TypeError(
            "persist must be a SessionPersistDriver or a store URL such as 'sqlite:agent.db', "
            f"not {persist!r}"
        )


def open_persist(persist: SessionPersistDriver | str | os.PathLike[str] | None) -> SessionPersistDriver:
    """Return the driver that the option names.

    Raises:
        InvalidRequestError: the store URL is unknown.
    """
    if isinstance(persist, SessionPersistDriver):
        return persist
    if persist is None:
        from sandbox_agent.persist.memory import InMemorySessionPersistDriver

        return InMemorySessionPersistDriver()
    from sandbox_agent.persist.open import open_driver

    return open_driver(persist if isinstance(persist, str) else f"sqlite:{os.fspath(persist)}")
