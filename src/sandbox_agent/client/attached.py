"""Takes the place of a client that was lost: reads the rest of its stream, and joins its running turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from sandbox_agent.client.connection import Connection
from sandbox_agent.client.envelopes import Envelope, decode
from sandbox_agent.client.feed import Place
from sandbox_agent.client.identity import ATTACHED, client_name, connection_of, has_ended, process_name
from sandbox_agent.client.outgoing import Outgoing, PendingRequest
from sandbox_agent.client.session_core import SessionCore
from sandbox_agent.client.settings import SET_METHODS
from sandbox_agent.engine.sse import SseEvent
from sandbox_agent.errors import (
    AgentProcessExitedError,
    ConflictError,
    ConnectionLostError,
    SessionBusyError,
)
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, members
from sandbox_agent.wire.records import SessionEvent

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# How long the place of a client is kept that has left (see the server's).
HOLD_TIMEOUT = 10.0
# Meanwhile it is asked so often whether the client is back.
HOLD_INTERVAL = 0.7
RETRY_DELAY = 0.1
_FIRST_TAIL = 256
_MAX_TAIL = 100_000
# A program that is killed has at most some envelopes that it stored and did not send.
_NEWEST = 16
# A server that does not say where its stream ends has sent what it has when it is silent for this long.
SILENCE = 0.3
LONGEST_REPLAY = 1.0
PROMPT = "session/prompt"
# Requests that open an agent session again.
OPENING = frozenset({"session/load", "session/resume"})


class _Attached(msgspec.Struct, rename="camel"):
    """The data of an ``attached`` event."""

    last_sequence: int = 0
    unsent: list[str] = []


class _Sent(msgspec.Struct, rename="camel"):
    """The data of a ``sent`` event."""

    client: str
    idempotency_key: str
    envelope: msgspec.Raw


class StoredTail:
    """What the store has of a connection, from the newest prompt on.

    Attributes:
        feed: the id of the stream whose envelopes were stored; None if none was.
        sequence: the sequence of the newest one.
        client_ids: the ids of the client's events.
        newest: the client's envelopes from the newest prompt on, which it may not have sent.
        open: requests of the client without a response, by JSON-RPC id.
        asked: requests of the agent without a response, by JSON-RPC id.
    """

    def __init__(self) -> None:
        self.feed: str | None = None
        self.sequence: int = 0
        self.client_ids: set[str] = set()
        self.newest: deque[tuple[SessionEvent, Envelope]] = deque(maxlen=_NEWEST)
        self.open: dict[int, tuple[SessionEvent, Envelope]] = {}
        self.asked: dict[bytes, tuple[SessionEvent, Envelope]] = {}

    @classmethod
    async def read(
        cls, driver: SessionPersistDriver, session_id: str, connection_id: str, *, turn: bool
    ) -> StoredTail:
        """Read the newest events, back to a place in the stream.

        Args:
            driver: stores the events.
            session_id: the session.
            connection_id: the connection.
            turn: read back to the newest prompt, too.
        """
        limit = _FIRST_TAIL
        while True:
            events = await driver.tail_events(session_id, limit=limit)
            own = [event for event in events if connection_of(event.connection_id) == connection_id]
            tail = cls()
            has_prompt = [tail._add(event) for event in own]
            is_whole = len(events) < limit or not own or own[0] is not events[0] or limit > _MAX_TAIL
            if is_whole or (tail.feed is not None and (any(has_prompt) or not turn)):
                return tail
            limit *= 8

    def _add(self, event: SessionEvent) -> bool:
        """Add an event; return whether it is a prompt."""
        try:
            head = decode(event.payload_json)
        except InvalidEnvelopeError:
            return False
        request_id = head.own_id()
        if event.sender == "agent":
            place = Place.read(event.id)
            if place is not None:
                self.feed, self.sequence = place
            if head.is_request:
                self.asked[bytes(head.id)] = event, head
            elif head.is_response and request_id is not None:
                self.open.pop(request_id, None)
            return False
        if (head.method or "").startswith("_sandbox_agent/"):
            return False
        self.client_ids.add(event.id)
        if head.method == PROMPT:
            self.newest.clear()  # what was stored before it was sent before it
        self.newest.append((event, head))
        if head.is_response:
            self.asked.pop(bytes(head.id), None)
        elif head.is_request and request_id is not None:
            self.open[request_id] = event, head
        return head.method == PROMPT


class AttachedConnection(Connection):
    """A connection that another client opened, used for one of its sessions.

    Several clients may attach to one connection, each for a session of its own. The agent ends with the last
    of them.

    Args:
        *args: as of Connection.
        session: the session, whose record names the client whose place is taken.
        driver: stores the session's events.
    """

    def __init__(self, *args: Any, session: SessionCore, driver: SessionPersistDriver) -> None:
        self._former_id = session.record.last_connection_id
        self._base_id = connection_of(self._former_id)
        super().__init__(*args, connection_id=f"{self._base_id}{ATTACHED}{secrets.token_hex(4)}")
        self._session = session
        self._driver = driver
        self._tail = StoredTail()
        self._is_ready = asyncio.Event()
        self._end: int | None = None
        self._unsent: set[str] = set()
        self._attached = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._agent_requests.hold()

    async def attach(self, *, take_over: bool) -> None:
        """Open the stream, store what the store lacks, and join what is running.

        Raises:
            ConflictError: the client is there, or has just been there.
            ConnectionLostError: the server does not know the connection, or it was lost meanwhile.
            SessionFencedError: another client claimed the session meanwhile.
            PersistError: the store failed.
        """
        session = self._session
        self.router.is_shared = True
        self.router.bind(session.agent_session_id, session)
        stored = await self._read_tail(turn=False)
        params = {
            "attach": client_name(self._former_id),
            "take_over": "true" if take_over else "false",
            "keys": ",".join(event.id for event, _ in stored.newest),
        }
        self._feed.start_after(stored.feed, stored.sequence, params)
        self._start_feed()
        await self._wait(self._feed.opened)
        if self._feed.complete:
            await self._wait(self._attached)
        # From here on no other client adds events, so that what is read is all that is stored.
        await session.journal.confirm()
        self._tail = await self._read_tail(turn=True)
        for request_id, (event, head) in self._tail.open.items():
            if event.id not in self._unsent:
                self._join(request_id, head, event)
        for event, head in self._tail.asked.values():
            self._agent_requests.act(event.payload_json, head, session, event)
        self._is_ready.set()
        if self._feed.complete:
            await self._wait(self._caught_up)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_REPLAY):
                    await self._feed.wait_quiet(SILENCE)
        if self.lost is None:
            session.on_attached(self.connection_id)
            await self._handle_unsent()
        await session.journal.flush()
        self._agent_requests.release()

    async def _handle_unsent(self) -> None:
        """Send the answers and cancellations that the former client stored and did not send.

        A request is not sent: who made it is gone. It may have been a prompt.
        """
        for event, head in self._tail.newest:
            if event.id not in self._unsent:
                continue
            if head.is_request:
                params = {"id": head.own_id(), "method": head.method}
                self._session.journal.append_notice("_sandbox_agent/not_sent", params)
            else:
                await self._delivery.notify(event.payload_json, event.id)

    async def _read_tail(self, *, turn: bool) -> StoredTail:
        return await StoredTail.read(self._driver, self._session.id, self._base_id, turn=turn)

    async def _wait(self, event: asyncio.Event) -> None:
        """Wait for an event of the stream, which may end instead."""
        waiter = asyncio.ensure_future(event.wait())
        ended = asyncio.ensure_future(self._lost_event.wait())
        try:
            await asyncio.wait({waiter, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            ended.cancel()
        if self.lost is not None and not event.is_set():
            raise self.lost

    async def _on_events(self, events: list[SseEvent]) -> None:
        for event in events:
            if event.event == "attached":
                attached = msgspec.json.decode(event.data, type=_Attached)
                self._end, self._unsent = attached.last_sequence, set(attached.unsent)
                self._attached.set()
        await self._is_ready.wait()
        run: list[SseEvent] = []
        for event in events:
            if event.event != "sent":
                run.append(event)
            elif not self._is_stored(event):
                await super()._on_events(run)
                run = []
                self._receive_sent(event)
        await super()._on_events([event for event in run if not self._is_stored(event)])
        last = int(events[-1].id or 0) if events else 0
        if self._end is not None and max(last, self._tail.sequence) >= self._end:
            self._caught_up.set()

    def _is_stored(self, event: SseEvent) -> bool:
        tail = self._tail
        return tail.feed == self._feed.id and event.id is not None and int(event.id) <= tail.sequence

    def _receive_sent(self, event: SseEvent) -> None:
        """Store what another client sent for the session, unless it is stored."""
        sent = msgspec.json.decode(event.data, type=_Sent)
        line, session = bytes(sent.envelope), self._session
        head = decode(line)
        is_answer = self._agent_requests.is_answer(head)
        if sent.client == client_name(self.connection_id) or not (
            is_answer or self.router.get(head.session_id) is session
        ):
            return
        if is_answer:
            self._agent_requests.answered(head)
        key, request_id = sent.idempotency_key, head.own_id()
        if key not in self._tail.client_ids:
            stored = session.journal.append("client", [line], self.connection_id, [key])
        elif key in self._unsent:  # it was on its way when the former client was lost
            stored = next(event for event, _ in self._tail.newest if event.id == key)
        else:
            return
        if head.is_request and request_id is not None:
            self._join(request_id, head, stored)

    def _join(self, request_id: int, head: Envelope, event: SessionEvent) -> None:
        """Wait for the response to a request of another client."""
        method, session = head.method or "", self._session
        params = members(event.payload.get("params"))
        opens = str(params.get("sessionId")) if method in OPENING else None
        on_result = partial(session.settings.user_set, method, params) if method in SET_METHODS else None
        if opens is not None:
            self.router.start_filter(opens)
        pending = PendingRequest(Outgoing(request_id, event), method, session, opens, on_result)
        pending.posted.set()
        self._pending[request_id] = pending

    async def _is_kept(self) -> bool:
        # The stream of an agent that has ended is kept for those that have other sessions of it.
        has_place = self._feed.opened.is_set() and not isinstance(self.lost, AgentProcessExitedError)
        return has_place and await super()._is_kept()


async def attach(
    new_connection: Callable[[], AttachedConnection], session: SessionCore, *, take_over: bool
) -> AttachedConnection | None:
    """Attach to the connection that a session used last, if the server still has it.

    The rest of its stream is stored. A client that has just left may only have lost its network: unless its
    process has certainly ended, its place is free when the server says so.

    Returns:
        The connection; None if its agent does not run any more.

    Raises:
        SessionBusyError: another process drives the session.
    """
    while True:
        connection = new_connection()
        try:
            await connection.attach(take_over=take_over)
            return connection if connection.lost is None else None
        except ConflictError as busy:
            holder, gone_for = busy.extensions.get("holder"), busy.extensions.get("goneForMs", 0)
            take_over = has_ended(holder)
            # A proxy may keep the stream of a process that has ended.
            if busy.extensions.get("connected") and not take_over:
                raise SessionBusyError(session.id, process_name(holder)) from None
            remaining = max(HOLD_TIMEOUT - gone_for / 1000, RETRY_DELAY)
            await asyncio.sleep(0 if take_over else min(remaining, HOLD_INTERVAL))
        except ConnectionLostError as error:
            logger.info("session %s: its last connection is gone: %s", session.id, error)
            return None
        except BaseException:
            await connection.close()
            raise
