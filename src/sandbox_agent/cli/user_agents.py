"""The options ``--agents``, ``--agent-registry`` and ``--agent-command``: agents besides the catalogue's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])


def agents_options(command: F) -> F:
    """Add ``--agents`` and ``--agent-registry`` to a command, as ``agents`` and ``agent_registry``."""
    registry = click.option(
        "--agent-registry",
        envvar="SANDBOX_AGENT_REGISTRY",
        show_envvar=True,
        metavar="URL",
        help="Document of an ACP registry. Its agents and versions come before those of the catalogue.",
    )
    return click.option(
        "--agents",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="SANDBOX_AGENT_AGENTS",
        show_envvar=True,
        metavar="FILE",
        help="TOML file with more agents. Default: sandbox-agent/agents.toml in the user's configuration "
        "folder, if it exists.",
    )(registry(command))


def agent_command_option(command: F) -> F:
    """Add ``--agent-command`` to a command, as ``agent_commands``."""
    return click.option(
        "--agent-command",
        "agent_commands",
        multiple=True,
        metavar="ID=COMMAND",
        help="Another agent: its id, and the command line that speaks ACP. Can be repeated.",
    )(command)


def with_user_agents(command: F) -> F:
    """Add ``--agents`` and ``--agent-registry`` to a command that only needs the agents to be known."""

    @functools.wraps(command)
    def loaded(*, agents: Path | None, agent_registry: str | None, **options: Any) -> Any:
        from sandbox_agent.agents.user_agents import load_user_agents

        load_user_agents(agents, registry=agent_registry)
        return command(**options)

    return agents_options(cast("F", loaded))
