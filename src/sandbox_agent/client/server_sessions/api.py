"""``sdk.sessions``: the sessions that the server itself stores and drives."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Literal, TypeAlias, Unpack

import msgspec

from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import Http, encode_header
from sandbox_agent.client.options import ServerSessionOptions, to_acp
from sandbox_agent.client.server_sessions.calls import (
    SessionCalls,
    decode,
    is_of_network,
    is_unprocessed,
    query,
    session_path,
)
from sandbox_agent.client.server_sessions.cursor import EventPage, read_page
from sandbox_agent.client.server_sessions.streams import (
    TURN_HEADER,
    Message,
    fetch_info,
    follow,
    message_body,
    new_key,
    stream_turn,
)
from sandbox_agent.client.sinks import EventSink
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.client.trace import current_trace
from sandbox_agent.engine.permissions import PermissionReply
from sandbox_agent.errors import ConflictError, SandboxAgentError, ServerSessionNotFoundError
from sandbox_agent.keywords import check_keywords, keywords
from sandbox_agent.wire.api import AgentId
from sandbox_agent.wire.records import ListPage
from sandbox_agent.wire.sessions import (
    CreateSessionRequest,
    CreateSessionResponse,
    PendingPermission,
    PermissionListResponse,
    SearchResponse,
    SessionInfo,
    SessionListResponse,
)
from sandbox_agent.wire.universal import AgentEvent

Timestamp: TypeAlias = datetime | int
ExportFormat: TypeAlias = Literal["jsonl", "markdown", "html"]
CLIENT_HEADER = "Sandbox-Agent-Client"
# How long the end of the client waits for creations to be cancelled.
CLOSE_TIMEOUT = 5.0
# The page size of ``iterate``.
PAGE = 100
_Pending: TypeAlias = list[PendingPermission]


def _paths(given: Sequence[str | os.PathLike[str]]) -> list[str]:
    return [os.fspath(path) for path in given]


_CONVERTED: dict[str, Callable[[Any], object]] = {
    "config_options": dict,
    "additional_directories": _paths,
    "mcp_servers": to_acp,
    "env": dict,
    "permission_rules": list,
}


class ServerSessions:
    """The server's sessions: they live on the server and outlive every client; reached as ``sdk.sessions``.

    Calls are retried while the server is away, and take effect once. Only ``cancel`` is not: it raises
    ConnectionLostError if no response was received; whether it took effect is then unknown.
    All calls raise TokenInvalidError and, if the session does not exist, ServerSessionNotFoundError.
    """

    def __init__(self, http: Http, health: HealthCheck, tasks: TaskOwner) -> None:
        self._calls = SessionCalls(http, health)
        self._tasks = tasks
        self._withdrawals: set[asyncio.Task[None]] = set()

    @keywords(ServerSessionOptions, None)
    async def create(
        self,
        id: str,  # noqa: A002 - the contract's name
        *,
        agent: AgentId,
        **options: Unpack[ServerSessionOptions],
    ) -> CreateSessionResponse:
        """Create a session; the same arguments again return the session that exists.

        If the caller is cancelled, the creation is cancelled on the server, too.

        Args:
            id: the session's id, chosen by the caller.
            agent: the agent's id ("claude", "codex", …).
            **options: see ``ServerSessionOptions``.

        Returns:
            The agent's own id of the session; ``healthy`` is true: a failure raises and creates no session.

        Raises:
            SessionAlreadyExistsError: a session of that id exists, with other arguments or terminated.
            UnsupportedAgentError: the server does not know the agent.
            ModeNotSupportedError: the agent has no such mode.
            InvalidRequestError: a value is invalid.
            ValueError: an MCP server is invalid.
        """
        check_keywords(options, ServerSessionOptions, "create")
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name, convert in _CONVERTED.items():
            if name in given:
                given[name] = convert(given[name])
        request = CreateSessionRequest(agent=agent, **given)
        path = session_path(id)
        # The server recognizes a request that is sent again.
        headers = {"Idempotency-Key": new_key()}
        body = msgspec.to_builtins(request)
        try:
            answer = await self._calls.send("POST", path, body=body, headers=headers, repeats=is_of_network)
        except asyncio.CancelledError:
            self._withdraw(path, headers)
            raise
        return decode(answer, CreateSessionResponse, f"POST {path}")

    def _withdraw(self, path: str, headers: Mapping[str, str]) -> None:
        """Cancel a creation on the server, or delete the session that only it has created."""

        async def withdraw() -> None:
            await self._calls.send("DELETE", path, headers=headers, repeats=is_of_network)

        if self._tasks.running:
            task = self._tasks.spawn(withdraw(), name=f"withdrawal of {path}")
            self._withdrawals.add(task)
            task.add_done_callback(self._withdrawals.discard)

    async def close(self) -> None:
        """Wait until creations that were cancelled are cancelled on the server, at most CLOSE_TIMEOUT."""
        if self._withdrawals:
            await asyncio.wait(self._withdrawals, timeout=CLOSE_TIMEOUT)

    async def get(self, id: str) -> SessionInfo:  # noqa: A002 - the contract's name
        """Return one session, with its newest turns and their usage."""
        return await fetch_info(self._calls, id)

    async def list(self, *, limit: int | None = None, cursor: str | None = None) -> ListPage[SessionInfo]:
        """Return a page of the sessions, newest first; those that an SDK drives are ``managed=False``.

        Raises:
            InvalidRequestError: the cursor is invalid.
        """
        params = query(limit=limit, cursor=cursor)
        content = await self._calls.send("GET", "/v1/sessions", params=params)
        answer = decode(content, SessionListResponse, "GET /v1/sessions")
        return ListPage(answer.sessions, answer.next_cursor)

    async def iterate(self) -> AsyncGenerator[SessionInfo]:
        """Iterate over all sessions, newest first."""
        cursor: str | None = None
        while True:
            page = await self.list(limit=PAGE, cursor=cursor)
            for session in page.items:
                yield session
            cursor = page.next_cursor
            if cursor is None:
                return

    async def post_message(self, id: str, message: Message, *, idempotency_key: str | None = None) -> str:  # noqa: A002
        """Send a message and return the id of its turn, once the server has stored it.

        The turn runs when earlier turns have ended: ``turn.*`` events and ``get(id).turns`` name it.

        Args:
            id: the session.
            message: text, or ACP content blocks.
            idempotency_key: a message is sent once per key, also across restarts; None generates one.

        Raises:
            ConflictError: the queue is full, the session has ended, or the key was used for another
                message.
        """
        key = encode_header(idempotency_key or new_key())
        answer = await self._calls.send(
            "POST",
            session_path(id, "messages"),
            body=message_body(message),
            headers={"Idempotency-Key": key, **current_trace()},
        )
        return answer.headers.get(TURN_HEADER, "")

    def stream_turn(
        self,
        id: str,  # noqa: A002 - the contract's name
        message: Message,
        *,
        include_raw: bool = False,
        idempotency_key: str | None = None,
    ) -> AsyncGenerator[AgentEvent]:
        """Send a message and iterate over the events of its turn, each once, until the turn ends.

        A lost connection is opened again, and the message is sent once. A turn that was running when the
        server died ends as interrupted. Leaving the loop does not cancel the turn.

        Args:
            id: the session.
            message: text, or ACP content blocks.
            include_raw: include the ACP envelope that each event was made from.
            idempotency_key: the key of a message that was sent before, to read its turn.

        Raises:
            ConflictError: as ``post_message``.
            ConnectionLostError: the server is gone.
        """
        return stream_turn(self._calls, id, message, include_raw=include_raw, idempotency_key=idempotency_key)

    async def stream_events(
        self,
        id: str,  # noqa: A002 - the contract's name
        *,
        offset: int = 0,
        include_raw: bool = False,
        allow_gaps: bool = False,
    ) -> AsyncGenerator[AgentEvent]:
        """Iterate over the events with a sequence above ``offset``: stored ones, then live ones, each once.

        The iteration survives lost connections and restarts of the server; it ends after ``session.ended``.

        Args:
            id: the session.
            offset: the sequence of the last event that you have.
            include_raw: include the ACP envelope that each event was made from.
            allow_gaps: skip events that retention has erased, instead of raising.

        Raises:
            GoneError: the next events are erased (``extensions``: missingFrom, missingTo), or the session
                has fewer events than ``offset``: it is another session of that id.
            ConnectionLostError: the server is gone.
        """
        batches = follow(self._calls, id, offset=offset, include_raw=include_raw, allow_gaps=allow_gaps)
        async with aclosing(batches):
            async for events in batches:
                for event in events:
                    yield event

    async def get_events(
        self,
        id: str,  # noqa: A002 - the contract's name
        *,
        offset: int | None = 0,
        limit: int | None = None,
        include_raw: bool = False,
    ) -> EventPage:
        """Return events with a sequence above ``offset``; None starts with the oldest stored event.

        Raises:
            GoneError: as ``stream_events``.
        """
        path = session_path(id, "events")
        params = query(offset=offset, limit=limit, include_raw=include_raw)
        return read_page(await self._calls.send("GET", path, params=params), f"GET {path}")

    async def reply_permission(
        self,
        id: str,  # noqa: A002 - the contract's name
        permission_id: str,
        reply: PermissionReply,
        *,
        by: str | None = None,
    ) -> None:
        """Answer a permission request; the first answer counts.

        Args:
            id: the session.
            permission_id: the id in ``permission.requested`` or ``permissions()``.
            reply: "once", "always" or "reject".
            by: a name for the log.

        Raises:
            ConflictError: the request is already answered; without ``by``, perhaps by this call, whose first
                response was lost.
            NotFoundError: there is no such request.
        """
        await self._answer(session_path(id, "permissions", permission_id, "reply"), {"reply": reply}, by)

    async def reply_question(
        self,
        id: str,  # noqa: A002 - the contract's name
        question_id: str,
        answers: Sequence[Sequence[str]],
        *,
        by: str | None = None,
    ) -> None:
        """Answer a question with the options chosen for each of its parts; raises as ``reply_permission``."""
        body = {"answers": [[*chosen] for chosen in answers]}
        await self._answer(session_path(id, "questions", question_id, "reply"), body, by)

    async def reject_question(
        self,
        id: str,  # noqa: A002 - the contract's name
        question_id: str,
        *,
        by: str | None = None,
    ) -> None:
        """Reject a question; raises as ``reply_permission``."""
        await self._answer(session_path(id, "questions", question_id, "reject"), None, by)

    async def _answer(self, path: str, body: object, by: str | None) -> None:
        headers = {CLIENT_HEADER: encode_header(by)} if by else None

        def is_done(error: SandboxAgentError) -> bool:
            return (
                isinstance(error, ConflictError)
                and by is not None
                and error.extensions.get("answeredBy") == by
            )

        await self._calls.send(
            "POST", path, body=body, headers=headers, repeats=is_of_network, is_done=is_done
        )

    async def cancel(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Cancel the running turn; the session stays."""
        # A cancellation that arrives again would cancel the next turn.
        await self._calls.send("POST", session_path(id, "cancel"), repeats=is_unprocessed)

    async def terminate(self, id: str) -> None:  # noqa: A002 - the contract's name
        """End the session and its agent; its history stays."""
        await self._calls.send("POST", session_path(id, "terminate"), repeats=is_of_network)

    async def delete(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Erase the session with its history."""
        await self._calls.send(
            "DELETE",
            session_path(id),
            repeats=is_of_network,
            is_done=lambda error: isinstance(error, ServerSessionNotFoundError),
        )

    async def export(self, id: str, *, format: ExportFormat = "jsonl") -> bytes:  # noqa: A002
        """Return the whole session as a document: one event per line, Markdown, or one HTML page."""
        answer = await self._calls.send(
            "GET", session_path(id, "export"), params={"format": format}, headers={"Accept": "*/*"}
        )
        return answer.content

    async def search(
        self,
        q: str,
        *,
        agent: str | None = None,
        session_id: str | None = None,
        since: Timestamp | None = None,
        until: Timestamp | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> SearchResponse:
        """Search the text, tool titles and tool output of all sessions.

        Args:
            q: words, all of which must match, and "phrases".
            agent: search only this agent's sessions.
            session_id: search only this session.
            since: the earliest time (a datetime, or milliseconds since the epoch).
            until: the latest time, exclusive.
            limit: the maximum number of hits, 100 or fewer.
            offset: the number of best hits to skip.

        Returns:
            The hits, best first, and whether there are more.
        """
        params = query(
            q=q,
            agent=agent,
            session=session_id,
            since=_milliseconds(since),
            until=_milliseconds(until),
            limit=limit,
            offset=offset,
        )
        content = await self._calls.send("GET", "/v1/search", params=params)
        return decode(content, SearchResponse, "GET /v1/search")

    async def permissions(self) -> _Pending:
        """Return the open permission requests and questions of all sessions, oldest first."""
        content = await self._calls.send("GET", "/v1/permissions")
        return decode(content, PermissionListResponse, "GET /v1/permissions").permissions

    async def mirror(
        self,
        id: str,  # noqa: A002 - the contract's name
        *,
        into: EventSink,
        include_raw: bool = False,
        allow_gaps: bool = False,
    ) -> int:
        """Copy a session's events into a sink, each once and in order, until the session has ended.

        Copying continues from the sink's last event and survives lost connections and restarts of the
        server; after a restart of your program call this method again. Cancel the call to stop earlier.

        Args:
            id: the session.
            into: the sink.
            include_raw: include the ACP envelope that each event was made from.
            allow_gaps: as in ``stream_events``; the sink must allow gaps, too.

        Returns:
            The sequence of the last event in the sink.

        Raises:
            PersistError: a built-in sink failed; custom sinks may raise other errors.
            GoneError: as ``stream_events``, like ConnectionLostError.
        """
        stored = into.last_sequence(id)
        last = await stored if inspect.isawaitable(stored) else stored
        batches = follow(self._calls, id, offset=last, include_raw=include_raw, allow_gaps=allow_gaps)
        async with aclosing(batches):
            async for events in batches:
                inserted = into.insert_events(id, events)
                if inspect.isawaitable(inserted):
                    await inserted
                last = events[-1].sequence
        return last


def _milliseconds(timestamp: Timestamp | None) -> int | None:
    """Return a time in milliseconds since the epoch; a naive datetime is local time."""
    return round(timestamp.timestamp() * 1000) if isinstance(timestamp, datetime) else timestamp
