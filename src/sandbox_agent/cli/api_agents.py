"""``sandbox-agent api agents``: the agents of a running server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from sandbox_agent.cli.completion import complete_agents
from sandbox_agent.cli.remote import Remote, connect_and_print, remote_options
from sandbox_agent.errors import SandboxAgentError

if TYPE_CHECKING:
    from sandbox_agent.client.agent import SandboxAgent
    from sandbox_agent.wire.api import AgentInfo

_agent = click.argument("agent", metavar="AGENT", shell_complete=complete_agents)
_config = click.option("--config", is_flag=True, help="Include the options: models, modes and others.")
_no_cache = click.option(
    "--no-cache", is_flag=True, help="Query the agent again: the server remembers answers."
)

# By the member of a report: the category of the config option that it shows.
_CATEGORIES: Final = {"models": "model", "modes": "mode", "thoughtLevels": "thought_level"}


@click.group()
def agents() -> None:
    """List and install the agents of a server, and show their options."""


@agents.command("list")
@_config
@_no_cache
@remote_options
def list_(*, remote: Remote, config: bool, no_cache: bool) -> None:
    """List all agents, and whether they are installed."""

    async def list_all(sdk: SandboxAgent) -> object:
        return {"agents": await sdk.list_agents(config=config, no_cache=no_cache)}

    connect_and_print(remote, list_all)


@agents.command()
@_agent
@_config
@_no_cache
@remote_options
def get(*, remote: Remote, agent: str, config: bool, no_cache: bool) -> None:
    """Show an agent."""
    connect_and_print(remote, lambda sdk: sdk.get_agent(agent, config=config, no_cache=no_cache))


@agents.command()
@_agent
@click.option("--reinstall", "-r", is_flag=True, help="Install the agent even if it is installed.")
@click.option("--agent-version", metavar="VERSION", help="Version of the agent's own package.")
@click.option("--agent-process-version", metavar="VERSION", help="Version of the package that speaks ACP.")
@remote_options
def install(
    *,
    remote: Remote,
    agent: str,
    reinstall: bool,
    agent_version: str | None,
    agent_process_version: str | None,
) -> None:
    """Install an agent on the server."""
    versions = {"agentVersion": agent_version, "agentProcessVersion": agent_process_version}
    options = {name: version for name, version in versions.items() if version is not None}
    connect_and_print(remote, lambda sdk: sdk.install_agent(agent, reinstall=reinstall, **options))


@agents.command()
@_agent
@_no_cache
@remote_options
def models(*, remote: Remote, agent: str, no_cache: bool) -> None:
    """Show the models of an agent."""
    _print_option(remote, agent, no_cache, "models")


@agents.command()
@_agent
@_no_cache
@remote_options
def modes(*, remote: Remote, agent: str, no_cache: bool) -> None:
    """Show the modes of an agent."""
    _print_option(remote, agent, no_cache, "modes")


@agents.command("thought-levels")
@_agent
@_no_cache
@remote_options
def thought_levels(*, remote: Remote, agent: str, no_cache: bool) -> None:
    """Show the thought levels of an agent."""
    _print_option(remote, agent, no_cache, "thoughtLevels")


@agents.command()
@_no_cache
@remote_options
def report(*, remote: Remote, no_cache: bool) -> None:
    """Show the models, modes and thought levels of all agents."""

    async def report_all(sdk: SandboxAgent) -> object:
        listed = await sdk.list_agents(config=True, no_cache=no_cache)
        return {
            "generatedAtMs": time.time_ns() // 1_000_000,
            "endpoint": remote.endpoint,
            "agents": [
                {
                    "id": agent.id,
                    "installed": agent.installed,
                    **({"configError": agent.config_error} if agent.config_error else {}),
                    **{name: _values(agent, category) for name, category in _CATEGORIES.items()},
                }
                for agent in listed
            ],
        }

    connect_and_print(remote, report_all)


def _print_option(remote: Remote, agent: str, no_cache: bool, name: str) -> None:
    async def read(sdk: SandboxAgent) -> object:
        info = await sdk.get_agent(agent, config=True, no_cache=no_cache)
        if info.config_error and not info.config_options:
            raise SandboxAgentError(f"the {name} of {agent} are not known: {info.config_error}")
        return _values(info, _CATEGORIES[name])

    connect_and_print(remote, read)


def _values(agent: AgentInfo, category: str) -> dict[str, Any]:
    """Return the current and the possible values of the agent's option of a category."""
    for option in agent.config_options or ():
        if option.get("category") == category:
            current = option.get("currentValue")
            values = [
                {name: value[name] for name in ("value", "name") if name in value}
                # Agents may put their values into groups.
                for each in option.get("options") or ()
                for value in each.get("options", [each])
            ]
            return {**({} if current is None else {"currentValue": current}), "values": values}
    return {"values": []}
