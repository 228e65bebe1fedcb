"""The options ``--agents`` and ``--agent-command``: agents besides those of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def agents_option(
    *, expose: bool = True, callback: Callable[[click.Context, click.Parameter, Any], Any] | None = None
) -> Callable[[F], F]:
    """Return a decorator that adds ``--agents``.

    Args:
        expose: Pass the value to the command, as ``agents``.
        callback: Called with the value.
    """
    return click.option(
        "--agents",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="SANDBOX_AGENT_AGENTS",
        show_envvar=True,
        metavar="FILE",
        expose_value=expose,
        callback=callback,
        help="TOML file with more agents. Default: sandbox-agent/agents.toml in the user's configuration "
        "folder, if it exists.",
    )


def agent_command_option(command: F) -> F:
    """Add ``--agent-command`` to a command, as ``agent_commands``."""
    return click.option(
        "--agent-command",
        "agent_commands",
        multiple=True,
        metavar="ID=COMMAND",
        help="Another agent: its id, and the command line that speaks ACP. Can be repeated.",
    )(command)


def _load(_context: click.Context, _parameter: click.Parameter, file: Path | None) -> None:
    from sandbox_agent.agents.user_agents import load_user_agents

    load_user_agents(file)


def with_user_agents(command: F) -> F:
    """Add ``--agents`` to a command that only needs the agents to be known."""
    return agents_option(expose=False, callback=_load)(command)
