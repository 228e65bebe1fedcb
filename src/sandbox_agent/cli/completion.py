"""What shells complete that is known without a server: the ids of agents."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sandbox_agent.errors import SandboxAgentError

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def complete_agents(
    _context: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the ids of the agents of the catalogue, of the user's file and of launchers."""
    from click.shell_completion import CompletionItem

    from sandbox_agent.agents.catalogue import known_agents
    from sandbox_agent.agents.launch import agent_ids
    from sandbox_agent.agents.user_agents import load_user_agents

    with contextlib.suppress(SandboxAgentError):  # a file that is invalid: the command itself says so
        load_user_agents(None)
    known = known_agents()
    return [
        CompletionItem(name, help=known[name].title if name in known else None)
        for name in agent_ids()
        if name.startswith(incomplete)
    ]
