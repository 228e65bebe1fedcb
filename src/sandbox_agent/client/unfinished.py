"""Ends the agent of a client that was lost while it restored a session.

That agent may have the agent session open, and it is not the connection that the session's record names: the
record changes when the agent has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection

from sandbox_agent.client.attached import HOLD_INTERVAL, HOLD_TIMEOUT, OPENING
from sandbox_agent.client.envelopes import decode
from sandbox_agent.client.http import quote_segment
from sandbox_agent.client.identity import connection_of, process_name, server_id_of
from sandbox_agent.client.server_sessions.calls import SessionCalls, is_of_network
from sandbox_agent.client.server_sessions.calls import decode as decode_body
from sandbox_agent.client.session_core import SessionCore
from sandbox_agent.errors import ConflictError, SessionBusyError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.wire.api import AcpServerInfo, AcpServerListResponse
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.records import RESTORED_METHOD

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# A restore that was not finished has stored few events.
NEWEST = 64


async def end_unfinished_restore(
    calls: SessionCalls,
    driver: SessionPersistDriver,
    session: SessionCore,
    own: Collection[str],
    *,
    take_over: bool,
) -> None:
    """End the agents that opened the session's agent session for a client that was lost meanwhile.

    Args:
        calls: sends requests to the server.
        driver: stores the session's events.
        session: the session.
        own: the ids of this client's connections.
        take_over: do not wait for a client that restores the session now. Its agent may serve other sessions,
            so it is left alone, and the agent session, which it may have open, is not opened again.

    Raises:
        SessionBusyError: another client restores the session now.
        PersistError: the store failed.
    """
    opened = await _opened_on(driver, session) - {connection_of(each) for each in own}
    deadline = time.monotonic() + HOLD_TIMEOUT
    for connection_id in opened:
        server_id = server_id_of(session.agent, connection_id)
        while (found := await _find(calls, server_id)) is not None:
            if not any(client.streams for client in found.clients or []):
                logger.info("session %s: %s did not finish its restore, and ends", session.id, server_id)
                await _end(calls, server_id)
                break
            if take_over:
                session.unopenable = session.agent_session_id
                break
            if time.monotonic() > deadline:
                raise SessionBusyError(session.id, process_name(None))
            await asyncio.sleep(HOLD_INTERVAL)


async def _opened_on(driver: SessionPersistDriver, session: SessionCore) -> set[str]:
    """Return the connections that opened the agent session after the last restore that was finished."""
    found: set[str] = set()
    for event in reversed(await driver.tail_events(session.id, limit=NEWEST)):
        try:
            method = decode(event.payload_json).method
        except InvalidEnvelopeError:
            continue
        if event.sender == "client" and method == RESTORED_METHOD:
            break
        if event.sender == "client" and method in OPENING:
            found.add(connection_of(event.connection_id))
    return found - {connection_of(session.record.last_connection_id)}


async def _find(calls: SessionCalls, server_id: str) -> AcpServerInfo | None:
    """Return the connection, if the server has it and says who uses it."""
    answer = await calls.send("GET", "/v1/acp", repeats=is_of_network)
    servers = decode_body(answer, AcpServerListResponse, "GET /v1/acp").servers
    return next((each for each in servers if each.server_id == server_id and each.clients is not None), None)


async def _end(calls: SessionCalls, server_id: str) -> None:
    path = f"/v1/acp/{quote_segment(server_id)}"
    with contextlib.suppress(ConflictError):  # a client has come back
        await calls.send("DELETE", path, params={"if_unused": "true"}, repeats=is_of_network)
