"""One message and the events of its turn, however often the connection is lost in between."""

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
from sandbox_agent.client.server_sessions.models import Message, decode, flag, message_body, new_key
from sandbox_agent.client.server_sessions.retry import Patience
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import TurnEventData, UniversalEvent

__all__ = ["TURN_HEADER", "stream_turn"]

TURN_HEADER = "Sandbox-Agent-Turn"
FINAL_STATES = frozenset({"done", "failed", "cancelled", "interrupted"})


async def stream_turn(
    calls: SessionCalls,
    session_id: str,
    message: Message,
    *,
    include_raw: bool = False,
    idempotency_key: str | None = None,
) -> AsyncGenerator[UniversalEvent]:
    """Send a message and iterate over its turn's events; see ``ServerSessions.stream_turn``."""
    key = idempotency_key or new_key()
    content = dumps(message_body(message))
    path = session_path(session_id, "messages", "stream")
    # The turn begins wherever the session is; what was read is dropped when it is sent again.
    position = Position(session_id, None)
    watch = _TurnWatch()
    patience = calls.patience(f"turn of session '{session_id}'")
    await patience.begin()
    while True:
        loss: Exception | str
        headers = {
            "Accept": "text/event-stream",
            "Content-Type": "application/json",
            "Idempotency-Key": key,
        }
        if position.sequence is not None:
            headers["Last-Event-ID"] = str(position.sequence)
        try:
            async with (
                calls.stream(
                    "POST", path, params={"include_raw": flag(include_raw)}, headers=headers, content=content
                ) as response,
                aclosing(read_stream(response)) as received,
            ):
                patience.meet()
                watch.turn_id = response.headers.get(TURN_HEADER)
                async for chunk in received:
                    for event in position.take(chunk):
                        patience.progress()
                        yield event
                        if watch.is_end(event):
                            return
            loss = "the stream ended before the turn"
            if await _is_over(calls, session_id, key, patience):
                return
        except (httpx2.TransportError, HoleError) as error:
            loss = error
        except UnavailableError as error:
            cause = error.__cause__
            loss = cause if isinstance(cause, SandboxAgentError) else error
        await patience.bear(loss)


class _TurnWatch:
    """Sees the end of the turn, or of the session; without an id the turn is the one that begins first."""

    def __init__(self) -> None:
        self.turn_id: str | None = None

    def is_end(self, event: UniversalEvent) -> bool:
        if event.type == "session.ended":
            return True
        data = event.data
        if not isinstance(data, TurnEventData):
            return False
        if event.type == "turn.started":
            self.turn_id = self.turn_id or data.turn_id
        return event.type == "turn.ended" and self.turn_id in {None, data.turn_id}


async def _is_over(calls: SessionCalls, session_id: str, key: str, patience: Patience) -> bool:
    """Whether the message's turn is over, without an event that says so."""
    path = session_path(session_id)
    info = decode(await calls.until_answered("GET", path, patience=patience), SessionInfo, f"GET {path}")
    turn = next((turn for turn in info.turns or [] if turn.idempotency_key == key), None)
    return turn is not None and turn.state in FINAL_STATES
