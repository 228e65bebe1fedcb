"""Configured MCP servers in ACP's shapes (agentclientprotocol.com, session setup)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from sandbox_agent.wire.configuration import McpLocalServer, McpRemoteServer, McpServerConfig

# ACP has no working directory of a server.
_IN_FOLDER: Final = 'cd -- "$1" && shift && exec "$@"'


class NotUsableError(Exception):
    """An MCP server can't be given to an agent; the message says why."""


def to_acp(
    name: str,
    config: McpServerConfig,
    directory: str,
    env: Mapping[str, str],
    capabilities: Mapping[str, Any],
) -> dict[str, Any]:
    """Return an MCP server in ACP's shape.

    Args:
        name: its name.
        config: an enabled server.
        directory: the session's working directory.
        env: the variables of the agent, for headers that come from them.
        capabilities: the agent's ``mcpCapabilities``.

    Raises:
        NotUsableError: the agent does not support its transport, a variable is missing, or it names nothing.
    """
    if isinstance(config, McpLocalServer):
        return {"name": name, **_local(config, directory)}
    return {"name": name, **_remote(config, env, capabilities)}


def _local(config: McpLocalServer, directory: str) -> dict[str, Any]:
    command = [config.command] if isinstance(config.command, str) else config.command
    if not command or not command[0]:
        raise NotUsableError("its command is empty: name a program")
    words = [*command, *config.args]
    if config.cwd:
        words = ["/bin/sh", "-c", _IN_FOLDER, "sh", os.path.join(directory, config.cwd), *words]
    return {"command": words[0], "args": words[1:], "env": _pairs(config.env or {})}


def _remote(
    config: McpRemoteServer, env: Mapping[str, str], capabilities: Mapping[str, Any]
) -> dict[str, Any]:
    transport = config.transport or "http"
    if not config.url.startswith(("http://", "https://")):
        raise NotUsableError("its url is not that of an HTTP server: it begins with http:// or https://")
    if capabilities.get(transport) is not True:
        raise NotUsableError(f"the agent does not support MCP over {transport}")
    headers = dict(config.headers or {})
    for header, variable in (config.env_headers or {}).items():
        headers[header] = _value(variable, env)
    if config.bearer_token_env_var:
        headers["Authorization"] = f"Bearer {_value(config.bearer_token_env_var, env)}"
    return {"type": transport, "url": config.url, "headers": _pairs(headers)}


def _value(variable: str, env: Mapping[str, str]) -> str:
    value = env.get(variable)
    if value is None:
        raise NotUsableError(f"the agent has no variable {variable}, which a header needs")
    return value


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]
