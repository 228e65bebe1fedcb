"""What ``tail`` writes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator

import click

from sandbox_agent.cli.tell_events import EventNarrator
from sandbox_agent.cli.terminal import Screen
from sandbox_agent.client.server_sessions.api import ServerSessions
from sandbox_agent.wire.universal import UniversalEvent, encode_event

__all__ = ["tail_session"]


async def tail_session(
    api: ServerSessions, session_id: str, offset: int, *, follow: bool, as_json: bool
) -> None:
    """Write events for people, or as JSON lines."""
    info = await api.get(session_id)
    screen = Screen(sys.stdout, sys.stdout)
    narrator = EventNarrator(screen, session_id, replies=follow)
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
                    narrator.tell(event)
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
