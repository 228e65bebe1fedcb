"""``sandbox-agent search``."""

from __future__ import annotations

import re
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from sandbox_agent.cli.completion import complete_agents
from sandbox_agent.cli.output import printable
from sandbox_agent.cli.remote import Remote, remote_options, run_remote
from sandbox_agent.wire.sessions import SearchHit

if TYPE_CHECKING:
    from sandbox_agent.client.server_sessions.api import ServerSessions

_AGE: Final = re.compile(r"(\d{1,9})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_time(text: str, now: datetime) -> datetime:
    """Parse an ISO 8601 date or time (local unless it has a UTC offset) or an age such as "2h".

    Raises:
        ValueError: The text is none of these.
    """
    age = _AGE.fullmatch(text.strip())
    try:
        if age is not None:
            return now - timedelta(**{_UNITS[age[2]]: int(age[1])})
        return datetime.fromisoformat(text.strip()).astimezone(now.tzinfo)
    except (ValueError, OverflowError):
        raise ValueError(f"invalid time '{text}': use an ISO 8601 time or an age such as 2h") from None


_MATCH = re.compile(r"\[([^\[\]]*)\]")


def _parse_time(_context: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    try:
        return None if value is None else parse_time(value, datetime.now().astimezone())
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("query")
@click.option(
    "--agent", "-a", metavar="ID", shell_complete=complete_agents, help="Only sessions of this agent."
)
@click.option("--session", "session_id", metavar="SESSION", help="Only this session.")
@click.option(
    "--since",
    callback=_parse_time,
    metavar="TIME",
    help="Only this time or later: 2026-01-31, 2026-01-31T12:00, or an age such as 2h or 7d.",
)
@click.option("--until", callback=_parse_time, metavar="TIME", help="Only before this time.")
@click.option(
    "--limit", "-l", type=click.IntRange(1, 100), metavar="COUNT", help="Maximum number of hits. Default: 20."
)
@click.option("--offset", "-o", type=click.IntRange(0), metavar="COUNT", help="Skip the first hits.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON hit per line.")
@remote_options
def search(*, remote: Remote, query: str, as_json: bool, **filters: Any) -> None:
    """Search all sessions of a server. A hit contains all words and all "phrases" of the QUERY.

    Each hit is one line, best first: session, sequence, time, agent, and the text around the match.
    """
    run_remote(remote, lambda api: _print_hits(api, query, filters, as_json=as_json))


async def _print_hits(api: ServerSessions, query: str, filters: dict[str, Any], *, as_json: bool) -> None:
    answer = await api.search(query, **filters)
    colors = sys.stdout.isatty()
    for hit in answer.hits:
        click.echo(msgspec.json.encode(hit) if as_json else format_hit(hit, colors=colors))
    if not answer.hits:
        click.echo("nothing found", err=True)
    elif answer.has_more:
        click.echo(f"more: --offset {(filters.get('offset') or 0) + len(answer.hits)}", err=True)


def format_hit(hit: SearchHit, *, colors: bool) -> str:
    """Return a hit as one line. With colors, matches are bold instead of in brackets."""
    time = datetime.fromtimestamp(hit.time / 1000).astimezone().isoformat(" ", "seconds")
    snippet = printable(" ".join(hit.snippet.split()))
    if colors:
        snippet = _MATCH.sub(lambda match: click.style(match[1], bold=True), snippet)
    return f"{printable(hit.session_id)}:{hit.sequence}  {time}  {hit.agent}  {snippet}"
