"""Stores what the server has recorded of a session and its lost client has not received.

The stream of a connection ends with its server, or with its agent and that agent's last client. The server's
record remains. Both have the agent's lines in the same order, so what the store lacks begins after the last
line that both have.
"""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from sandbox_agent.client.envelopes import Answer, Envelope, decode
from sandbox_agent.client.feed import Place
from sandbox_agent.client.identity import connection_of
from sandbox_agent.client.router import STATE_UPDATES
from sandbox_agent.client.server_sessions.calls import SessionCalls, is_of_network, query, session_path
from sandbox_agent.client.server_sessions.calls import decode as decode_body
from sandbox_agent.client.session_core import SessionCore
from sandbox_agent.client.settings import SET_METHODS
from sandbox_agent.errors import AcpRpcError, PersistError, SandboxAgentError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, load_object, members
from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.sessions import EnvelopesResponse, SessionEnvelope, SessionListResponse

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# So many of the newest events and envelopes are read first, then more of them up to the most.
FIRST = 16
MAX = 100_000
NO_RECORD = "the connection is gone, and the server has no record of how the turn went on"
PROMPT = "session/prompt"
_EXITED = b'"_adapter/agent_exited"'


class _Stored(NamedTuple):
    """What the store has of a connection.

    Attributes:
        feed: the id of the connection's stream.
        anchor: the newest line of the agent that has a JSON-RPC id, by which it is found in the record.
        later: the agent's lines after it.
        client: the client's envelopes.
        is_open: whether a turn was running.
    """

    feed: str
    anchor: bytes
    later: list[bytes]
    client: list[SessionEvent]
    is_open: bool


async def catch_up(calls: SessionCalls, driver: SessionPersistDriver, session: SessionCore) -> None:
    """Store the rest of the session's last connection, which the server does not have any more.

    If the server has no record of it, and a turn was running, a notice says so: how it went on is unknown.

    Raises:
        SessionFencedError: another client claimed the session meanwhile.
        PersistError: the store failed.
    """
    # From here on no other client adds events, so that what is read is all that is stored.
    await session.journal.confirm()
    await session.journal.flush()
    connection_id = connection_of(session.record.last_connection_id)
    stored = await _read_stored(driver, session.id, connection_id)
    if stored is None:
        return
    recorded = await _read_recorded(calls, session, stored)
    if recorded is None:
        if stored.is_open:
            session.journal.append_notice("_sandbox_agent/events_lost", {"reason": NO_RECORD})
        return
    missing = after_stored(recorded, stored.later)
    # That the agent of an idle session has ended says nothing about the session.
    if any(_EXITED not in bytes(envelope.envelope) for envelope in missing):
        logger.info("session %s: %d envelopes are taken from the server's record", session.id, len(missing))
        _store(session, connection_id, stored, missing)
        await session.journal.flush()


async def _read_stored(driver: SessionPersistDriver, session_id: str, connection_id: str) -> _Stored | None:
    """Read the newest events, back to an anchor; None if there is none, or if nothing can be missing."""
    limit = FIRST
    while True:
        events = await driver.tail_events(session_id, limit=limit)
        own = [event for event in events if connection_of(event.connection_id) == connection_id]
        later: list[bytes] = []
        for event in reversed([event for event in own if event.sender == "agent"]):
            place = Place.read(event.id)
            line = _comparable(event.payload_json)
            if _EXITED in line:
                return None  # everything before it has been received, too
            if place is not None and _has_id(line):
                client = [each for each in own if each.sender == "client"]
                return _Stored(place.feed, line, later[::-1], client, _is_open(own, line))
            later.append(line)
        if len(events) < limit or limit > MAX:
            return None
        limit *= 8


def _comparable(line: bytes) -> bytes:
    """Return an envelope in one spelling: a page with half of a surrogate pair has another one."""
    try:
        return dumps(load_object(line))
    except InvalidEnvelopeError:
        return line


def _is_open(events: Sequence[SessionEvent], newest: bytes) -> bool:
    """Return whether the agent asks something, or a prompt of these events has no response."""
    if decode(newest).is_request:
        return True
    prompts, responses = set[bytes](), set[bytes]()
    for event in events:
        with contextlib.suppress(InvalidEnvelopeError):
            head = decode(event.payload_json)
            if event.sender == "client" and head.method == PROMPT:
                prompts.add(bytes(head.id))
            elif event.sender == "agent" and head.is_response:
                responses.add(bytes(head.id))
    return bool(prompts - responses)


def _has_id(line: bytes) -> bool:
    try:
        return bool(decode(line).id)
    except InvalidEnvelopeError:
        return False


async def _read_recorded(
    calls: SessionCalls, session: SessionCore, stored: _Stored
) -> Sequence[SessionEnvelope] | None:
    """Return what the server has recorded of the connection after the anchor; None if it has no record."""
    try:
        return await _read_after(calls, session, stored)
    except PersistError:
        raise
    except SandboxAgentError as error:
        logger.info("session %s: the server's record can't be read: %s", session.id, error)
        return None


async def _read_after(
    calls: SessionCalls, session: SessionCore, stored: _Stored
) -> Sequence[SessionEnvelope] | None:
    params = query(agent=session.agent, nativeSessionId=session.agent_session_id)
    answer = await calls.send("GET", "/v1/sessions", params=params, repeats=is_of_network)
    found = decode_body(answer, SessionListResponse, "GET /v1/sessions").sessions
    if len(found) != 1 or found[0].native_session_id != session.agent_session_id:
        return None  # or a server that does not know the filter
    path, number = session_path(found[0].session_id, "envelopes"), FIRST
    last = (await _page(calls, path, 0, limit=0)).last_index
    while True:
        start = max(0, last - number)
        envelopes = await _pages(calls, path, start)
        own = [envelope for envelope in envelopes if envelope.connection_id == stored.feed]
        for position in range(len(own) - 1, -1, -1):
            if (
                own[position].sender == "agent"
                and _comparable(bytes(own[position].envelope)) == stored.anchor
            ):
                return own[position + 1 :]
        if not start or number > MAX:
            logger.info("session %s: the server's record does not have what is stored", session.id)
            return None
        number *= 8


async def _pages(calls: SessionCalls, path: str, after: int) -> list[SessionEnvelope]:
    envelopes: list[SessionEnvelope] = []
    while True:
        page = await _page(calls, path, after)
        envelopes += page.envelopes
        if not page.has_more or not page.envelopes:
            return envelopes
        after = page.envelopes[-1].index


async def _page(calls: SessionCalls, path: str, after: int, limit: int | None = None) -> EnvelopesResponse:
    params = query(after=after, limit=limit)
    answer = await calls.send("GET", path, params=params, repeats=is_of_network)
    return decode_body(answer, EnvelopesResponse, f"GET {path}")


def after_stored(recorded: Sequence[SessionEnvelope], stored: Sequence[bytes]) -> Sequence[SessionEnvelope]:
    """Return what was recorded after the last line that is stored.

    Lines that only one side has are skipped: a client does not store what an agent repeats of the history,
    and a server whose store failed lacks what it could not record.
    """
    places: dict[bytes, list[int]] = {}
    for position, envelope in enumerate(recorded):
        if envelope.sender == "agent":
            places.setdefault(_comparable(bytes(envelope.envelope)), []).append(position)
    start = 0
    for line in stored:
        candidates = places.get(line, [])
        found = bisect_left(candidates, start)
        if found < len(candidates):
            start = candidates[found] + 1
    return recorded[start:]


def _store(
    session: SessionCore, connection_id: str, stored: _Stored, missing: Sequence[SessionEnvelope]
) -> None:
    sent, answered, notifications = _sent(stored.client)
    # An id is unique in a store, and several sessions may have used the connection.
    suffix = crc32(session.id.encode())
    for envelope in missing:
        line = bytes(envelope.envelope)
        try:
            head = decode(line)
        except InvalidEnvelopeError:
            continue
        request_id = head.own_id()
        if envelope.sender == "client" and (
            (head.is_request and request_id in sent)
            or (head.is_response and bytes(head.id) in answered)
            or _comparable(line) in notifications
        ):
            continue
        event_id = f"{stored.feed}-r{envelope.index}.{suffix}"
        session.journal.append(envelope.sender, [line], connection_id, [event_id])
        if envelope.sender == "agent":
            _apply(session, line, head, sent.get(request_id) if head.is_response and request_id else None)


def _sent(
    events: Sequence[SessionEvent],
) -> tuple[dict[int, tuple[Envelope, SessionEvent]], set[bytes], set[bytes]]:
    """Return the client's requests by id, the ids of its responses, and its notifications."""
    requests: dict[int, tuple[Envelope, SessionEvent]] = {}
    answered: set[bytes] = set()
    notifications: set[bytes] = set()
    for event in events:
        try:
            head = decode(event.payload_json)
        except InvalidEnvelopeError:
            continue
        request_id = head.own_id()
        if head.is_request and request_id is not None:
            requests[request_id] = head, event
        elif head.is_response:
            answered.add(bytes(head.id))
        else:
            notifications.add(_comparable(event.payload_json))
    return requests, answered, notifications


def _apply(
    session: SessionCore, line: bytes, head: Envelope, request: tuple[Envelope, SessionEvent] | None
) -> None:
    """Apply what a line of the agent says about the session's settings."""
    if head.params is not None and head.params.update is not None:
        if head.params.update.sessionUpdate in STATE_UPDATES:
            session.on_state_update(line)
    elif request is not None and (method := request[0].method or "") in SET_METHODS:
        try:
            result = Answer.read(line).unwrap()
        except AcpRpcError:
            return
        session.settings.user_set(method, members(request[1].payload.get("params")), result)
