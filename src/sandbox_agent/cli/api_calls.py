"""What ``api sessions`` calls, and writes."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec

from sandbox_agent.client.server_sessions.api import ExportFormat, ServerSessions
from sandbox_agent.errors import PersistError
from sandbox_agent.wire.sessions import SessionListResponse
from sandbox_agent.wire.universal import encode_event

__all__ = [
    "create",
    "events",
    "events_sse",
    "export",
    "get",
    "list_page",
    "send_message",
    "send_message_stream",
]


async def create(api: ServerSessions, session_id: str, options: dict[str, Any]) -> None:
    """Make a session and write what became of it."""
    _write(await api.create(session_id, **options))


async def list_page(api: ServerSessions, limit: int | None, cursor: str | None) -> None:
    """Write a page of sessions."""
    page = await api.list(limit=limit, cursor=cursor)
    _write(SessionListResponse(sessions=page.items, next_cursor=page.next_cursor))


async def get(api: ServerSessions, session_id: str) -> None:
    """Write a session."""
    _write(await api.get(session_id))


async def send_message(api: ServerSessions, session_id: str, message: str, key: str | None) -> None:
    """Send a message and write the id of its turn."""
    _write({"turnId": await api.post_message(session_id, message, idempotency_key=key)})


async def send_message_stream(
    api: ServerSessions, session_id: str, message: str, key: str | None, *, include_raw: bool
) -> None:
    """Send a message and write the events of its turn."""
    turn = api.stream_turn(session_id, message, idempotency_key=key, include_raw=include_raw)
    async with contextlib.aclosing(turn):
        async for event in turn:
            click.echo(encode_event(event))


async def events(
    api: ServerSessions, session_id: str, offset: int, limit: int | None, *, include_raw: bool
) -> None:
    """Write a page of events."""
    page = await api.get_events(session_id, offset=offset, limit=limit, include_raw=include_raw)
    lines = [msgspec.Raw(encode_event(event)) for event in page.events]
    _write({"events": lines, "hasMore": page.has_more})


async def events_sse(api: ServerSessions, session_id: str, offset: int, *, include_raw: bool) -> None:
    """Write events as they come."""
    stream = api.stream_events(session_id, offset=offset, include_raw=include_raw)
    async with contextlib.aclosing(stream):
        async for event in stream:
            click.echo(encode_event(event))


async def export(
    api: ServerSessions, session_id: str, export_format: ExportFormat, output: Path | None
) -> None:
    """Write a session as a document.

    Raises:
        PersistError: the file can't be written.
    """
    document = await api.export(session_id, format=export_format)
    if output is None:
        click.echo(document, nl=not document.endswith(b"\n"))
        return
    # Written beside its place and moved there when it is whole.
    partial = output.with_name(output.name + ".partial")
    try:
        with ExitStack() as cleanup:
            cleanup.callback(partial.unlink, missing_ok=True)
            partial.write_bytes(document)
            partial.replace(output)
    except OSError as error:
        raise PersistError(f"'{output}' can't be written: {error.strerror}") from error


def _write(document: object) -> None:
    click.echo(msgspec.json.encode(document))
