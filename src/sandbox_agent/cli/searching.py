"""What ``search`` writes."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import Any

import click
import msgspec

from sandbox_agent.cli.terminal import printable
from sandbox_agent.client.server_sessions.api import ServerSessions
from sandbox_agent.wire.sessions import SearchHit

__all__ = ["hit_line", "print_hits"]

_FOUND = re.compile(r"\[([^\[\]]*)\]")


async def print_hits(api: ServerSessions, query: str, filters: dict[str, Any], *, as_json: bool) -> None:
    """Write the hits of a query."""
    answer = await api.search(query, **filters)
    colours = sys.stdout.isatty()
    for hit in answer.hits:
        click.echo(msgspec.json.encode(hit) if as_json else hit_line(hit, colours=colours))
    if not answer.hits:
        click.echo("nothing found", err=True)
    elif answer.has_more:
        click.echo(f"more: --offset {(filters.get('offset') or 0) + len(answer.hits)}", err=True)


def hit_line(hit: SearchHit, *, colours: bool) -> str:
    """Return a hit as one line; with colours the words are bold instead of in brackets."""
    time = datetime.fromtimestamp(hit.time / 1000).astimezone().isoformat(" ", "seconds")
    snippet = printable(" ".join(hit.snippet.split()))
    if colours:
        snippet = _FOUND.sub(lambda found: click.style(found[1], bold=True), snippet)
    return f"{printable(hit.session_id)}:{hit.sequence}  {time}  {hit.agent}  {snippet}"
