"""Copying a session's events to a place of the user's, each once (seed 000, recommended approach)."""

from __future__ import annotations

import inspect
from contextlib import aclosing

from sandbox_agent.client.server_sessions.calls import SessionCalls
from sandbox_agent.client.server_sessions.follow import follow
from sandbox_agent.client.sinks.base import EventSink

__all__ = ["mirror"]


async def mirror(
    calls: SessionCalls,
    session_id: str,
    sink: EventSink,
    *,
    include_raw: bool = False,
    allow_gaps: bool = False,
) -> int:
    """Copy events until the session has ended; see ``ServerSessions.mirror``."""
    found = sink.last_sequence(session_id)
    last = await found if inspect.isawaitable(found) else found
    batches = follow(calls, session_id, offset=last, include_raw=include_raw, allow_gaps=allow_gaps)
    async with aclosing(batches):
        async for events in batches:
            done = sink.insert_events(session_id, events)
            if inspect.isawaitable(done):
                await done
            last = events[-1].sequence
    return last
