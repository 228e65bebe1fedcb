"""Sends one message and iterates over the events of its turn, across lost connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

import httpx2

from sandbox_agent.client.http import encode_header
from sandbox_agent.client.server_sessions.calls import SessionCalls, session_path
from sandbox_agent.client.server_sessions.cursor import EventCursor
from sandbox_agent.client.server_sessions.follow import fetch_info
from sandbox_agent.client.server_sessions.models import Message, message_body, new_key, query
from sandbox_agent.client.server_sessions.streams import read_batches
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.universal import TurnEventData, UniversalEvent

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
    key = encode_header(idempotency_key or new_key())
    content = dumps(message_body(message))
    path = session_path(session_id, "messages", "stream")
    # The position of the turn is not known; events that were read are skipped when it is sent again.
    cursor = EventCursor(session_id, None)
    retry = calls.retry_policy(f"turn of session '{session_id}'")
    turn_id: str | None = None

    @asynccontextmanager
    async def connect() -> AsyncGenerator[httpx2.Response]:
        nonlocal turn_id
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        if cursor.sequence is not None:
            headers["Last-Event-ID"] = str(cursor.sequence)
        params = query(include_raw=include_raw)
        async with calls.stream("POST", path, params=params, headers=headers, content=content) as response:
            turn_id = response.headers.get(TURN_HEADER)
            yield response

    async def is_over() -> bool:
        # The turn may have ended without an event that says so.
        info = await fetch_info(calls, session_id, retry)
        turn = next((turn for turn in info.turns or [] if turn.idempotency_key == key), None)
        return turn is not None and turn.state in FINAL_STATES

    await retry.wait_ready()
    async with aclosing(read_batches(connect, cursor, retry, is_over)) as batches:
        async for events in batches:
            for event in events:
                yield event
                if event.type == "session.ended":
                    return
                if isinstance(event.data, TurnEventData):
                    if event.type == "turn.started":
                        # Without an id from the server, the turn is the one that starts first.
                        turn_id = turn_id or event.data.turn_id
                    elif event.type == "turn.ended" and turn_id in {None, event.data.turn_id}:
                        return
