"""Following a session: history, then what happens, over any number of connections, each event once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2

from sandbox_agent.client.server_sessions.calls import (
    SessionCalls,
    UnavailableError,
    read_stream,
    session_path,
)
from sandbox_agent.client.server_sessions.cursor import HoleError, Position
from sandbox_agent.client.server_sessions.models import decode, flag
from sandbox_agent.client.server_sessions.retry import Patience
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import UniversalEvent

__all__ = ["follow"]

EVENT_STREAM = "text/event-stream"


async def follow(
    calls: SessionCalls,
    session_id: str,
    *,
    offset: int = 0,
    include_raw: bool = False,
    allow_gaps: bool = False,
) -> AsyncGenerator[list[UniversalEvent]]:
    """Iterate over a session's events with ``sequence > offset``, those that come together in one list.

    Ends behind session.ended, or at once where a session that has ended has no more events. Raises what
    ``ServerSessions.stream_events`` does.
    """
    if offset < 0:
        raise ValueError("offset is negative: it is the sequence of the last event that you have")
    position = Position(session_id, offset, allow_gaps=allow_gaps)
    path = session_path(session_id, "events", "sse")
    patience = calls.patience(f"events of session '{session_id}'")
    # The stream of a session that has ended stays open: where it ends is to be known before.
    end = await _end(calls, session_id, patience)
    if end is not None and offset == end:
        return
    while True:
        loss: Exception | str
        try:
            params = {"offset": str(position.sequence), "include_raw": flag(include_raw)}
            headers = {"Accept": EVENT_STREAM}
            async with (
                calls.stream("GET", path, params=params, headers=headers) as response,
                aclosing(read_stream(response)) as received,
            ):
                patience.meet()
                async for chunk in received:
                    fresh = position.take(chunk)
                    if fresh:
                        patience.progress()
                        yield fresh
                    if any(event.type == "session.ended" for event in fresh) or position.sequence == end:
                        return
            # Deleted, or the server ends.
            end = await _end(calls, session_id, patience)
            if position.sequence == end:
                return
            loss = "the stream ended"
        except (httpx2.TransportError, HoleError) as error:
            loss = error
        except UnavailableError as error:
            cause = error.__cause__
            loss = cause if isinstance(cause, SandboxAgentError) else error
        await patience.bear(loss)


async def _end(calls: SessionCalls, session_id: str, patience: Patience) -> int | None:
    """Return the last sequence of a session that has ended, None for one that goes on."""
    path = session_path(session_id)
    info = decode(await calls.until_answered("GET", path, patience=patience), SessionInfo, f"GET {path}")
    return info.event_count if info.ended else None
