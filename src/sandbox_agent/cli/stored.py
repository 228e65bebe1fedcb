"""What ``sessions`` writes: pages and transcripts."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final

import click
import msgspec

from sandbox_agent.cli.narrate import Narrator
from sandbox_agent.cli.terminal import Screen, printable
from sandbox_agent.errors import SessionNotFoundError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.wire.records import SessionEvent, SessionRecord

__all__ = ["print_page", "print_transcript", "read_events"]

_PAGE: Final = 500


async def print_page(driver: SessionPersistDriver, *, limit: int, cursor: str | None, as_json: bool) -> None:
    """Write a page of sessions as a table, or as one JSON object."""
    page = await driver.list_sessions(limit=limit, cursor=cursor)
    if as_json:
        document = {"items": page.items, "nextCursor": page.next_cursor}
        click.echo(msgspec.json.encode(document))
        return
    rows = [("ID", "AGENT", "CREATED", "EVENTS", "")]
    for record in page.items:
        count = await driver.last_event_index(record.id)
        ended = "destroyed" if record.destroyed_at is not None else ""
        rows.append((record.id, record.agent, _time(record.created_at), f"{count:,}", ended))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for identifier, agent, created, count, ended in rows:
        line = (
            f"{identifier:<{widths[0]}}  {agent:<{widths[1]}}  {created:<{widths[2]}}  {count:>{widths[3]}}"
        )
        click.echo(printable(f"{line}  {ended}".rstrip()))
    if page.next_cursor is not None:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


async def print_transcript(driver: SessionPersistDriver, session_id: str) -> None:
    """Write a session as people read it.

    Raises:
        SessionNotFoundError: the store has none of that id.
    """
    record = await _require(driver, session_id)
    screen = Screen(sys.stdout, sys.stdout)
    screen.note(f"session {record.id}  agent {record.agent}  created {_time(record.created_at)}", "dim")
    narrator = Narrator(screen, client=True)
    async for event in read_events(driver, session_id):
        narrator.tell(event)
    screen.end_line()


async def _require(driver: SessionPersistDriver, session_id: str) -> SessionRecord:
    record = await driver.get_session(session_id)
    if record is None:
        raise SessionNotFoundError(session_id)
    return record


async def read_events(driver: SessionPersistDriver, session_id: str) -> AsyncIterator[SessionEvent]:
    """Iterate over all stored events of a session."""
    cursor: str | None = None
    while True:
        page = await driver.list_events(session_id, limit=_PAGE, cursor=cursor)
        for event in page.items:
            yield event
        cursor = page.next_cursor
        if cursor is None:
            return


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"
