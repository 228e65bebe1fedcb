"""``sandbox-agent tail``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import click

from sandbox_agent.cli.remote import Remote, remote_options, run_remote
from sandbox_agent.cli.terminal import Screen
from sandbox_agent.cli.universal_printer import UniversalPrinter
from sandbox_agent.wire.universal import UniversalEvent, encode_event

if TYPE_CHECKING:
    from sandbox_agent.client.server_sessions.api import ServerSessions


@click.command()
@click.argument("session_id", metavar="SESSION")
@click.option(
    "--offset",
    "-o",
    type=click.IntRange(0),
    default=0,
    metavar="SEQUENCE",
    help="Start after the event with this sequence.",
)
@click.option("--no-follow", is_flag=True, help="End at the end of the history.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON event per line.")
@remote_options
def tail(*, remote: Remote, session_id: str, offset: int, no_follow: bool, as_json: bool) -> None:
    """Show the history of a server's SESSION, then follow it until it ends.

    Reconnects when the connection or the server is lost.
    """
    run_remote(
        remote, lambda api: _tail_session(api, session_id, offset, follow=not no_follow, as_json=as_json)
    )


async def _tail_session(
    api: ServerSessions, session_id: str, offset: int, *, follow: bool, as_json: bool
) -> None:
    info = await api.get(session_id)
    screen = Screen(sys.stdout, sys.stdout)
    printer = UniversalPrinter(screen, session_id, replies=follow)
    if not as_json:
        title = f"  {info.title}" if info.title else ""
        screen.note(f"session {session_id}  agent {info.agent}{title}", "dim")
    stream = api.stream_events(session_id, offset=offset) if follow else _history(api, session_id, offset)
    try:
        async with contextlib.aclosing(stream):
            async for event in stream:
                if as_json:
                    click.echo(encode_event(event))
                else:
                    printer.print_event(event)
    finally:
        screen.end_line()


async def _history(api: ServerSessions, session_id: str, offset: int) -> AsyncGenerator[UniversalEvent]:
    while True:
        page = await api.get_events(session_id, offset=offset)
        for event in page.events:
            yield event
        if not page.has_more or not page.events:
            return
        offset = page.events[-1].sequence
