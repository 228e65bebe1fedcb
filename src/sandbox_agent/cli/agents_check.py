"""``sandbox-agent agents check``: what an agent does behind the server, with a scripted model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click
import msgspec

from sandbox_agent.cli.completion import complete_agents
from sandbox_agent.cli.output import print_table, printable
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.extras import require_server

if TYPE_CHECKING:
    from sandbox_agent.testing.agents import Report, Result


@click.command()
@click.argument("agent_id", metavar="ID", shell_complete=complete_agents)
@click.option(
    "--only", metavar="NAME", multiple=True, help="Run this scenario; can be repeated. Default: all."
)
@click.option("--json", "as_json", is_flag=True, help="Write the results as JSON to standard output.")
@click.option(
    "--profile",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TOML file that says how the agent reaches the model.",
)
@click.option(
    "--record",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append the agent's ACP traffic to this file, without secrets.",
)
def check(
    *, agent_id: str, only: tuple[str, ...], as_json: bool, profile: Path | None, record: Path | None
) -> None:
    """Run an agent through all scenarios, with a scripted model in an empty home folder.

    Nothing is sent to a network, and no key is needed. The exit code is 1 if a result is not what is known
    about the agent.
    """
    require_server("sandbox-agent agents check")
    from sandbox_agent.cli.agents import install_for_use
    from sandbox_agent.testing.agents import SCENARIOS, check_agent, profile_of
    from sandbox_agent.testing.agents.check import FINAL

    known = (*SCENARIOS, *FINAL)
    if unknown := [name for name in only if name not in known]:
        raise InvalidRequestError(f"unknown scenario '{unknown[0]}': use {', '.join(known)}")
    install_for_use(agent_id)
    path = None if record is None else record.absolute()

    def show(result: Result) -> None:
        click.echo(f"{result.route} {result.scenario}: {result.outcome} ({result.seconds:.1f} s)", err=True)

    async def run() -> Report:
        return await check_agent(
            agent_id,
            profile=profile_of(agent_id, profile),
            only=only,
            record=path,
            on_result=show,
        )

    report = anyio.run(run)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        _print_report(report)
    if not report.is_expected:
        sys.exit(1)


def _print_report(report: Report) -> None:
    outcomes: dict[str, dict[str, str]] = {}
    for result in report.results:
        mark = "" if result.expected else " (!)"
        outcomes.setdefault(result.scenario, {})[result.route] = f"{result.outcome}{mark}"
    rows = [
        [name, by_route.get("sdk") or by_route.get("server", ""), by_route.get("sessions", "")]
        for name, by_route in outcomes.items()
    ]
    print_table(["SCENARIO", "SDK", "SESSIONS"], rows)
    reasons = {
        f"{result.scenario}: {result.reason}": result.expected for result in report.results if result.reason
    }
    for reason, expected in reasons.items():
        click.echo(f"{' ' if expected else '!'} {printable(reason)}")
    name = f"{report.agent} {report.version}" if report.version else report.agent
    unexpected = sum(not result.expected for result in report.results)
    click.echo(f"{name}: {unexpected or 'no'} unexpected result{'' if unexpected == 1 else 's'}")
