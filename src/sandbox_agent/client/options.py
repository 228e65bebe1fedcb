"""The keyword arguments that several methods of SandboxAgent share, and their checks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, TypedDict, cast

import httpx2

from sandbox_agent.client.health import DEFAULT_TIMEOUT
from sandbox_agent.client.permissions import PermissionPolicy
from sandbox_agent.client.questions import QuestionPolicy
from sandbox_agent.engine.permissions import PermissionMode
from sandbox_agent.keywords import check_keywords
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.plain import PlainDriver, adapt_driver
from sandbox_agent.wire.api import AgentId
from sandbox_agent.wire.sessions import PermissionRule

McpServers: TypeAlias = Sequence[Mapping[str, Any]] | Mapping[str, Any]
Persist: TypeAlias = SessionPersistDriver | PlainDriver | str | os.PathLike[str]


# How long an agent may take to end a turn that was cancelled, by default.
CANCEL_GRACE = 10.0


class ClientOptions(TypedDict, total=False):
    """Keyword arguments of ``connect`` and ``start``.

    Attributes:
        token: the server's bearer token; ``start`` asks the provider if it is None.
        headers: HTTP headers of every request.
        transport: an httpx2 transport that sends the requests; closed with the client.
        persist: where sessions and events are stored (default: in memory): a driver, or any object with its
            five methods, which is not closed with the client, or a store URL or path such as
            "sqlite:agent.db", whose driver is.
        replay_max_events: how many events of history a restored session is given, 50 by default.
        replay_max_chars: the same limit in characters, 12,000 by default.
        skip_health_check: send requests without waiting until the server is healthy.
        health_timeout: how long to wait for a healthy server, in seconds, 120 by default; None waits forever.
        cancel_grace: how long an agent may take to end a turn that was cancelled, in seconds; then it is
            stopped. 10 by default.
    """

    token: str | None
    headers: Mapping[str, str] | None
    transport: httpx2.AsyncBaseTransport | None
    persist: Persist | None
    replay_max_events: int
    replay_max_chars: int
    skip_health_check: bool
    health_timeout: float | None
    cancel_grace: float


CLIENT_DEFAULTS: Final[ClientOptions] = {
    "replay_max_events": 50,
    "replay_max_chars": 12_000,
    "skip_health_check": False,
    "health_timeout": DEFAULT_TIMEOUT,
    "cancel_grace": CANCEL_GRACE,
}
"""The options that are not None by default."""


class HandleOptions(TypedDict, total=False):
    """Keyword arguments of every method that returns a session; they are not stored with it.

    Attributes:
        env: variables of an agent process of the session's own, besides those that agents inherit. Their
            values are not stored: a process that has not created the session passes them to
            ``resume_session`` again, before their agent can be started. An agent that runs keeps those that
            it has.
        permission_policy: how permission requests are answered when there is no listener: a permission
            mode, a reply ("once", "always", "reject"), or a function of the request. None keeps the policy
            of a session that is resumed.
        question_policy: lets the agent ask questions, which it otherwise does not. Listeners answer them;
            without one, a function of the request does, or "ask" waits for a listener. An agent that still
            runs asks only if it did before.
    """

    env: Mapping[str, str] | None
    permission_policy: PermissionPolicy | None
    question_policy: QuestionPolicy | None


class SessionOptions(HandleOptions, total=False):
    """Keyword arguments of ``create_session`` and ``resume_or_create_session``, with those of HandleOptions.

    Attributes:
        cwd: the agent's working directory on the server's machine; default: the provider's, else the current
            directory if the server's URL is one of this machine, else "/".
        model: see ``Session.set_model``.
        mode: see ``Session.set_mode``.
        thought_level: see ``Session.set_thought_level``.
        mcp_servers: MCP servers in ACP's shape, or by name in the shape of Claude Desktop's configuration;
            ``env`` and ``headers`` may also be dicts.
        session_init: params of session/new; they take precedence over ``cwd`` and ``mcp_servers``.
        additional_directories: more directories that the agent may work in, in ACP's params of session/new.
        permission_mode: what the session may do: "ask", "accept_edits", "allow", "plan" or "read_only". It
            decides permission requests before any listener, and sets the agent's mode that it stands for.
    """

    cwd: str | os.PathLike[str] | None
    model: str | None
    mode: str | None
    thought_level: str | None
    mcp_servers: McpServers | None
    additional_directories: Sequence[str | os.PathLike[str]] | None
    session_init: Mapping[str, Any] | None
    permission_mode: PermissionMode | None


class ResumeOptions(HandleOptions, total=False):
    """Keyword arguments of ``resume_session``, with those of HandleOptions.

    Attributes:
        agent: the agent that continues the session; another agent than before is given the history, and
            the previous agent's turn is cancelled. None keeps the agent.
        take_over: take the session from another process that still drives it. Its calls fail with
            SessionFencedError.
        read_only: return a handle that only reads: ``events`` and listeners receive what any process
            stores. Nothing is sent to the server, and no other argument is used.
    """

    agent: AgentId | None
    take_over: bool
    read_only: bool


RESUME_DEFAULTS: Final[ResumeOptions] = {"take_over": False, "read_only": False}
"""The options that are not None by default."""


class ServerSessionOptions(TypedDict, total=False):
    """Keyword arguments of ``ServerSessions.create``.

    Attributes:
        agent_mode: the agent's mode.
        permission_mode: "ask", "accept_edits", "allow", "plan", "read_only" or "reject".
        model: the model's id.
        variant: the model's variant, the agent's thought level.
        config_options: values of the agent's other config options, by id, such as ``{"fast": True}``.
        directory: the agent's working directory; default: the server's own.
        title: a title for people.
        additional_directories: more directories that the agent may work in, absolute paths.
        mcp_servers: MCP servers as in SessionOptions.
        env: variables of the session's agent, besides those that it inherits. The server keeps them with
            the session and never returns their values.
        permission_rules: checked before ``permission_mode``; the first match decides.
        permission_timeout_seconds: a request that is not answered in this time is rejected.
    """

    agent_mode: str | None
    permission_mode: str | None
    model: str | None
    variant: str | None
    config_options: Mapping[str, str | bool] | None
    directory: str | None
    title: str | None
    additional_directories: Sequence[str | os.PathLike[str]] | None
    mcp_servers: McpServers | None
    env: Mapping[str, str] | None
    permission_rules: Sequence[PermissionRule] | None
    permission_timeout_seconds: float | None


def arguments_digest(agent: str, options: SessionOptions) -> str:
    """Return a digest of the arguments of ``create_session``; all functions count as the same."""
    given: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    if env := options.get("env"):
        given["env"] = sorted(env)  # no digest of secrets is stored
    text = json.dumps([agent, given], sort_keys=True, default=_to_json)
    return hashlib.sha256(text.encode()).hexdigest()


def _to_json(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    if isinstance(value, Sequence):
        return list(cast("Sequence[Any]", value))
    is_path = isinstance(value, os.PathLike)
    return os.fspath(cast("os.PathLike[str]", value)) if is_path else "function"


def check_client_options(options: ClientOptions, function: str) -> None:
    """Raise the TypeError of a call with an unknown keyword or an invalid store."""
    check_keywords(options, ClientOptions, function)
    persist = options.get("persist")
    if persist is not None and not isinstance(persist, SessionPersistDriver | str | os.PathLike):
        adapt_driver(persist)


def open_persist(persist: Persist | None) -> SessionPersistDriver:
    """Return the driver that the option names.

    Raises:
        InvalidRequestError: the store URL is unknown.
        TypeError: an object lacks the methods of a driver.
    """
    if isinstance(persist, SessionPersistDriver):
        return persist
    if persist is not None and not isinstance(persist, str | os.PathLike):
        return adapt_driver(persist)
    if persist is None:
        from sandbox_agent.persist.memory import InMemorySessionPersistDriver

        return InMemorySessionPersistDriver()
    from sandbox_agent.persist.open import open_driver

    return open_driver(persist if isinstance(persist, str) else f"sqlite:{os.fspath(persist)}")


def session_params(options: SessionOptions, default_cwd: str) -> dict[str, Any]:
    """Return the params of session/new.

    Raises:
        ValueError: an MCP server is invalid.
    """
    given: dict[str, Any] = dict(options.get("session_init") or {})
    params: dict[str, Any] = {
        **given,
        "cwd": os.fspath(given.get("cwd") or options.get("cwd") or default_cwd),
        "mcpServers": given.get("mcpServers") or to_acp(options.get("mcp_servers") or []),
    }
    if directories := options.get("additional_directories"):
        params["additionalDirectories"] = [os.fspath(directory) for directory in directories]
    return params


def check_env(env: object) -> dict[str, str]:
    """Return variables as a dict.

    Raises:
        TypeError: they are no mapping of strings.
    """
    if env is None:
        return {}
    given = cast("Mapping[object, object]", env)
    if not isinstance(env, Mapping) or not all(isinstance(each, str) for each in (*given, *given.values())):
        raise TypeError("env must be a mapping of names to values, all of them strings")
    return dict(cast("Mapping[str, str]", env))


_STDIO = {"name": True, "command": True, "args": False, "env": False}
_HTTP = {"name": True, "url": True, "headers": False}
# The members of each transport, and whether they are required.
_MEMBERS = {"stdio": _STDIO, "http": _HTTP, "sse": _HTTP}


def to_acp(servers: McpServers) -> list[dict[str, Any]]:
    """Return MCP servers in ACP's shape; ``env`` and ``headers`` may be dicts.

    Args:
        servers: a list of servers, or a dict of them by their names, also as the member ``mcpServers`` of a
            dict: the configuration file of Claude Desktop and others.

    Raises:
        ValueError: a server is invalid, or has a member that ACP does not define.
    """
    if isinstance(servers, Mapping):
        return _named_servers(servers)
    return [_convert(server, f"mcp_servers[{index}]") for index, server in enumerate(servers)]


def _named_servers(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    servers: object = given.get("mcpServers", given)
    if not isinstance(servers, Mapping):
        raise ValueError(
            f"mcp_servers['mcpServers'] must be a dict of servers by name, not {type(servers).__name__}"
        )
    return [
        _convert(_named(name, server), f"mcp_servers[{name!r}]")
        for name, server in cast("Mapping[str, object]", servers).items()
    ]


def _named(name: str, server: object) -> object:
    if not isinstance(server, Mapping):
        return server
    fields = {"name": name, **cast("Mapping[str, Any]", server)}
    if "type" not in fields and "url" in fields:
        fields["type"] = "http"
    return fields


def _convert(server: object, where: str) -> dict[str, Any]:
    if not isinstance(server, Mapping):
        raise ValueError(f"{where} must be a dict, not {type(server).__name__}")
    given = cast("Mapping[str, Any]", server)
    kind = given.get("type", "stdio")
    if kind not in _MEMBERS:
        raise ValueError(f"{where}.type must be one of {', '.join(_MEMBERS)}, not {kind!r}")
    known = _MEMBERS[kind]
    for name in given:
        if name not in known and name not in ("type", "_meta"):
            raise ValueError(
                f"{where}: unknown member {name!r}; a {kind} server has {', '.join(known)}, _meta"
            )
    for name, required in known.items():
        if required and name not in given:
            raise ValueError(f"{where}: {name!r} is missing")
    converted = {name: list(value) if name == "args" else value for name, value in given.items()}
    if kind == "stdio":
        converted.setdefault("args", [])
    pairs = "env" if kind == "stdio" else "headers"
    converted[pairs] = _to_pairs(given.get(pairs) or [], f"{where}.{pairs}")
    return converted


def _to_pairs(value: object, where: str) -> list[Any]:
    if isinstance(value, Mapping):
        pairs = [{"name": name, "value": text} for name, text in cast("Mapping[str, object]", value).items()]
    else:
        pairs = list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else [None]
    for pair in cast("list[object]", pairs):
        fields = cast("dict[str, object]", pair) if isinstance(pair, dict) else {}
        if not isinstance(fields.get("name"), str) or not isinstance(fields.get("value"), str):
            raise ValueError(f"{where} must be a dict of strings, or a list of name and value, not {value!r}")
    return pairs
