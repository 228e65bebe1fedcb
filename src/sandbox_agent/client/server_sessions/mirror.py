"""Copies a session's events into a sink, each event once."""

from __future__ import annotations

import inspect
from contextlib import aclosing

from sandbox_agent.client.server_sessions.calls import SessionCalls
from sandbox_agent.client.server_sessions.follow import follow
from sandbox_agent.client.sinks import EventSink


async def mirror(
    calls: SessionCalls,
    session_id: str,
    sink: EventSink,
    *,
    include_raw: bool = False,
    allow_gaps: bool = False,
) -> int:
    """Copy events until the session has ended; see ``ServerSessions.mirror``."""
    stored = sink.last_sequence(session_id)
    last = await stored if inspect.isawaitable(stored) else stored
    batches = follow(calls, session_id, offset=last, include_raw=include_raw, allow_gaps=allow_gaps)
    async with aclosing(batches):
        async for events in batches:
            inserted = sink.insert_events(session_id, events)
            if inspect.isawaitable(inserted):
                await inserted
            last = events[-1].sequence
    return last
