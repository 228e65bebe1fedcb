"""``sandbox-agent agents``: list, install, update, uninstall and check the agents of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import click
import msgspec

from sandbox_agent.agents.catalogue import NpmPackages, known_agents
from sandbox_agent.agents.info import agent_info
from sandbox_agent.agents.install.installed import read_installation
from sandbox_agent.agents.install.installer import (
    Installed,
    Progress,
    Versions,
    install,
    response_of,
    uninstall,
    update,
)
from sandbox_agent.agents.launch import agent_ids, resolve
from sandbox_agent.cli.agents_check import check
from sandbox_agent.cli.completion import complete_agents
from sandbox_agent.cli.output import print_table, printable
from sandbox_agent.cli.user_agents import with_user_agents
from sandbox_agent.errors import (
    AgentNotInstalledError,
    InvalidRequestError,
    SandboxAgentError,
)
from sandbox_agent.wire.api import AgentInfo

_json = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
_reinstall = click.option("--reinstall", "-r", is_flag=True, help="Install again what is installed.")
_all = click.option("--all", "everything", is_flag=True, help="All agents that can be installed.")
_SOURCES = {"launcher": "launcher", "path": "on PATH", "builtin": "built in"}


@click.group()
def agents() -> None:
    """List, install, update, uninstall and check the agents of this machine."""


agents.add_command(check)


@agents.command("list")
@_json
@with_user_agents
def list_agents(*, as_json: bool) -> None:
    """List the agents, and which of them are installed."""
    infos = [agent_info(agent_id) for agent_id in agent_ids()]
    if as_json:
        _print_json({"agents": infos})
        return
    rows = [
        [info.id, _how(info), info.version or "", info.pinned_version or "", info.package or ""]
        for info in infos
    ]
    print_table(["AGENT", "INSTALLED", "VERSION", "CATALOGUE", "PACKAGE"], rows)


def _how(info: AgentInfo) -> str:
    try:
        return _SOURCES[resolve(info.id).source]
    except AgentNotInstalledError:
        return "no"


@agents.command()
@click.argument("agent_id", metavar="ID", shell_complete=complete_agents)
@_json
@with_user_agents
def show(*, agent_id: str, as_json: bool) -> None:
    """Show one agent: how it is started here, its package and its credentials."""
    info = agent_info(agent_id)
    if as_json:
        _print_json(info)
        return
    agent = known_agents().get(agent_id)
    lines = {
        "agent": info.id if agent is None else f"{info.id} ({agent.title})",
        "installed": _how(info),
        "version": info.version,
        "path": info.path,
        "package": info.package and f"{info.package} {info.pinned_version}",
        "needs": f"Node.js {agent.package.node} or newer"
        if agent is not None and isinstance(agent.package, NpmPackages)
        else None,
        "credentials": "found" if info.credentials_available else "not found",
        "variables": None
        if agent is None
        else ", ".join(" with ".join(names) for names in agent.credential_variables),
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<12} {printable(value)}")


@agents.command("install")
@click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=complete_agents)
@_all
@_reinstall
@click.option("--version", metavar="VERSION", help="Version of the package that speaks ACP.")
@_json
@with_user_agents
def install_agents(
    *, ids: tuple[str, ...], everything: bool, reinstall: bool, version: str | None, as_json: bool
) -> None:
    """Install agents, in the versions of the catalogue.

    Node.js of the version that `agents show` names has to be on PATH, or the extra `node` installed.
    """
    versions = None if version is None else Versions(acp=version)
    _install(ids, everything, reinstall, versions, as_json)


@click.command("install-agent")
@click.argument("agent_id", metavar="[ID]", required=False, shell_complete=complete_agents)
@_all
@_reinstall
@click.option("--agent-version", metavar="VERSION", help="Version of the agent's own package.")
@click.option("--agent-process-version", metavar="VERSION", help="Version of the package that speaks ACP.")
@with_user_agents
def install_agent(
    *,
    agent_id: str | None,
    everything: bool,
    reinstall: bool,
    agent_version: str | None,
    agent_process_version: str | None,
) -> None:
    """Install an agent, as the published server's command does."""
    versions = None
    if agent_version is not None or agent_process_version is not None:
        versions = Versions(acp=agent_process_version, native=agent_version)
    if agent_id == "all":
        agent_id, everything = None, True
    _install([agent_id] if agent_id else [], everything, reinstall, versions, as_json=True)


def _install(
    ids: Sequence[str], everything: bool, reinstall: bool, versions: Versions | None, as_json: bool
) -> None:
    if everything == bool(ids):
        raise InvalidRequestError("name the agents to install, or use --all")
    if everything:
        ids = [agent.id for agent in known_agents().values() if agent.package is not None]

    async def one(agent_id: str, **callbacks: Any) -> Installed:
        return await install(agent_id, versions=versions, reinstall=reinstall, **callbacks)

    _run(ids, one, as_json)


@agents.command("update")
@click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=complete_agents)
@_json
@with_user_agents
def update_agents(*, ids: tuple[str, ...], as_json: bool) -> None:
    """Install the catalogue's versions of agents that are installed in others. Default: of all."""

    async def one(agent_id: str, **callbacks: Any) -> Installed:
        result = await update(agent_id, **callbacks)
        if result is None:
            raise AgentNotInstalledError(
                f"agent not installed: {agent_id}: `sandbox-agent agents install {agent_id}` installs it",
                agent=agent_id,
            )
        return result

    installed = [agent_id for agent_id in known_agents() if read_installation(agent_id) is not None]
    _run(ids or installed, one, as_json)


@agents.command("uninstall")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_agents)
@with_user_agents
def uninstall_agents(*, ids: tuple[str, ...]) -> None:
    """Uninstall agents. Sessions that run them fail."""
    for agent_id in ids:
        removed = anyio.run(uninstall, agent_id)
        click.echo(f"{agent_id} {'is uninstalled' if removed else 'was not installed'}")


def install_for_use(agent_id: str) -> None:
    """Install an agent that a command on this machine needs, as the server would do, but with progress."""
    known = known_agents().get(agent_id)
    forbidden = os.environ.get("SANDBOX_AGENT_REQUIRE_PREINSTALL", "")
    if known is None or known.package is None or (forbidden and click.BOOL.convert(forbidden, None, None)):
        return
    try:
        resolve(agent_id)
    except AgentNotInstalledError:
        _install_one(agent_id, install)


def _install_one(agent_id: str, one: Callable[..., Awaitable[Installed]]) -> Installed:
    async def run() -> Installed:
        with _shown_progress(agent_id) as on_progress:
            return await one(agent_id, on_progress=on_progress)

    return anyio.run(run)


def _run(ids: Sequence[str], one: Callable[..., Awaitable[Installed]], as_json: bool) -> None:
    """Install one agent after the other. What fails does not stop the others."""
    failed: list[SandboxAgentError] = []
    for agent_id in ids:
        try:
            result = _install_one(agent_id, one)
        except SandboxAgentError as error:
            if len(ids) == 1:
                raise
            click.echo(f"{agent_id}: {error}", err=True)
            failed.append(error)
            continue
        if as_json:
            response: dict[str, Any] = msgspec.to_builtins(response_of(result))
            _print_json({"agent": agent_id, **response})
        else:
            info = agent_info(agent_id)
            state = "was installed already" if result.already_installed else "is installed"
            click.echo(f"{agent_id} {info.version or ''} {state}: {info.path or 'built in'}")
    if failed:
        raise type(failed[0])(f"{len(failed)} of {len(ids)} agents could not be installed")


@contextmanager
def _shown_progress(agent_id: str) -> Generator[Callable[[Progress], None]]:
    """Show progress on standard error: a bar on a terminal with rich, otherwise a line per phase."""
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar
        except ImportError:
            pass
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(agent_id, total=None)

                def draw(progress: Progress) -> None:
                    bar.update(
                        task,
                        description=f"{agent_id}: {progress.phase}",
                        total=progress.total,
                        completed=progress.done,
                    )

                yield draw
            return
    phase = ""

    def write(progress: Progress) -> None:
        nonlocal phase
        if progress.phase != phase:
            phase = progress.phase
            click.echo(f"{agent_id}: {phase}", err=True)

    yield write


def _print_json(document: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document)))
