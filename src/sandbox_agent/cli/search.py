"""``sandbox-agent search``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from sandbox_agent.cli.parse_time import parse_moment
from sandbox_agent.cli.remote import Remote, remote_options, run_remote

__all__ = ["search"]


def _moment(_context: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    try:
        return None if value is None else parse_moment(value, datetime.now().astimezone())
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("query")
@click.option("--agent", "-a", metavar="ID", help="Only sessions of this agent.")
@click.option("--session", "session_id", metavar="SESSION", help="Only this session.")
@click.option(
    "--since", callback=_moment, metavar="WHEN", help="Not before: 2026-01-31, 2026-01-31T12:00, 2h, 7d."
)
@click.option("--until", callback=_moment, metavar="WHEN", help="Before; as --since.")
@click.option(
    "--limit", "-l", type=click.IntRange(1, 100), metavar="COUNT", help="Hits at most; 20 by default."
)
@click.option("--offset", "-o", type=click.IntRange(0), metavar="COUNT", help="Leave out the best so many.")
@click.option("--json", "as_json", is_flag=True, help="Write the hits, one JSON object a line.")
@remote_options
def search(*, remote: Remote, query: str, as_json: bool, **filters: Any) -> None:
    """Search all sessions of a server for a QUERY: words, all of which must be there, and "phrases".

    Hits are lines, best first: session, sequence, time, agent, and the place where the words are.
    """
    from sandbox_agent.cli.searching import print_hits

    run_remote(remote, lambda api: print_hits(api, query, filters, as_json=as_json))
