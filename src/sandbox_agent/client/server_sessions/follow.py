"""Follows a session: its stored events, then live ones, over any number of connections, each event once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing

import httpx2

from sandbox_agent.client.server_sessions.calls import SessionCalls, session_path
from sandbox_agent.client.server_sessions.cursor import EventCursor
from sandbox_agent.client.server_sessions.models import decode, query
from sandbox_agent.client.server_sessions.retry import RetryPolicy
from sandbox_agent.client.server_sessions.streams import read_batches
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import UniversalEvent


async def follow(
    calls: SessionCalls,
    session_id: str,
    *,
    offset: int = 0,
    include_raw: bool = False,
    allow_gaps: bool = False,
) -> AsyncGenerator[list[UniversalEvent]]:
    """Iterate over a session's events with ``sequence > offset``, in batches as they are received.

    The iteration ends after session.ended, or at once if an ended session has no more events. Raises as
    ``ServerSessions.stream_events``.
    """
    if offset < 0:
        raise ValueError("offset is negative: pass the sequence of the last event that you have, or 0")
    cursor = EventCursor(session_id, offset, allow_gaps=allow_gaps)
    path = session_path(session_id, "events", "sse")
    retry = calls.retry_policy(f"events of session '{session_id}'")

    def connect() -> AbstractAsyncContextManager[httpx2.Response]:
        params = query(offset=cursor.sequence, include_raw=include_raw)
        return calls.stream("GET", path, params=params, headers={})

    async def last_sequence() -> int | None:
        info = await fetch_info(calls, session_id, retry)
        return info.event_count if info.ended else None

    async def is_over() -> bool:
        nonlocal end
        end = await last_sequence()
        return cursor.sequence == end

    # The stream of an ended session stays open, so its last event has to be known before.
    end = await last_sequence()
    if offset == end:
        return
    async with aclosing(read_batches(connect, cursor, retry, is_over)) as batches:
        async for events in batches:
            if events:
                yield events
            if any(event.type == "session.ended" for event in events) or cursor.sequence == end:
                return


async def fetch_info(calls: SessionCalls, session_id: str, retry: RetryPolicy | None = None) -> SessionInfo:
    """Fetch a session's info."""
    path = session_path(session_id)
    return decode(await calls.until_answered("GET", path, retry=retry), SessionInfo, f"GET {path}")
