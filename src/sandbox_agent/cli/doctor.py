"""``sandbox-agent doctor``: checks what a user needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from sandbox_agent.cli.doctor_findings import Finding, Status, problem
from sandbox_agent.cli.output import Style, echo_json, printable
from sandbox_agent.cli.tokens import token_option
from sandbox_agent.runtime.privacy import hide_url

_STYLES: Final[dict[Status, Style]] = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@click.option(
    "--store",
    envvar="SANDBOX_AGENT_STORE",
    show_envvar=True,
    metavar="URL",
    help="The server's store. Default: server.db in the data folder.",
)
@click.option(
    "--agents",
    "agents_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="SANDBOX_AGENT_AGENTS",
    show_envvar=True,
    metavar="FILE",
    help="TOML file with more agents.",
)
@click.option(
    "--port",
    "-p",
    default=2468,
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="The port on which a server would listen.",
)
@click.option("--online", is_flag=True, help="Use the network: check registries of packages and databases.")
@click.option("--url", metavar="URL", help="Check a running server, and nothing of this machine.")
@token_option("Bearer token of that server.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def doctor(
    *,
    store: str | None,
    agents_file: Path | None,
    port: int,
    online: bool,
    url: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Check what servers and agents need on this machine, or a running server.

    Installed agents are started once, without credentials. The network is used only with --online or --url.
    The exit code is 1 if there is a problem; warnings do not count.
    """
    if store is not None:
        hide_url(store)
    found: list[Finding] = []
    for finding in (
        _check_url(url, token) if url is not None else _check_here(store, agents_file, port, online)
    ):
        found.append(finding)
        if not as_json:
            _show(finding)
    problems = sum(finding.status == "problem" for finding in found)
    if as_json:
        echo_json({"problems": problems, "findings": found})
    sys.exit(1 if problems else 0)


def _check_url(url: str, token: str | None) -> Iterator[Finding]:
    from sandbox_agent.cli.doctor_network import check_server

    try:
        yield from check_server(url, token)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _check_here(store: str | None, agents_file: Path | None, port: int, online: bool) -> Iterator[Finding]:
    from sandbox_agent.agents.launch import data_dir
    from sandbox_agent.cli.doctor_agents import check_agents, check_credentials, check_node
    from sandbox_agent.cli.doctor_machine import (
        check_folder,
        check_limits,
        check_network_settings,
        check_port,
        check_python,
        check_store,
        check_tools,
    )

    store = store or f"sqlite:{data_dir() / 'server.db'}"
    checks = {
        "python": check_python,
        "data folder": check_folder,
        "store": lambda: check_store(store),
        "port": lambda: check_port(port),
        "tools": check_tools,
        "limits": check_limits,
        "network": check_network_settings,
        "credentials": lambda: check_credentials(Path.home()),
        "node": check_node,
        "agents file": lambda: _load_agents(agents_file),
        "agents": check_agents,
    }
    if online:
        from sandbox_agent.cli.doctor_network import check_online

        checks["online"] = lambda: check_online(store)
    for name, check in checks.items():
        try:
            yield from check()
        except OSError as error:
            yield problem(
                name,
                f"what is needed for this check can't be read: {error}",
                "run this command as the user that runs the server",
            )


def _load_agents(file: Path | None) -> Iterator[Finding]:
    from sandbox_agent.agents.user_agents import load_user_agents
    from sandbox_agent.errors import InvalidRequestError

    try:
        load_user_agents(file)
    except InvalidRequestError as error:
        yield problem("agents", str(error), "correct the file, or name another one with --agents")


def _show(finding: Finding) -> None:
    status = click.style(f"{finding.status:<8}", fg=_STYLES[finding.status])
    click.echo(f"{status} {finding.check}: {printable(finding.message)}")
    if finding.advice:
        click.echo(f"{'':<8} -> {printable(finding.advice)}")
