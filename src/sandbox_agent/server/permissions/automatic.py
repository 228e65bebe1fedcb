"""Answers permission requests automatically: by a session's policy, and after the permission timeout."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from sandbox_agent.engine.permissions import verdict_outcome
from sandbox_agent.engine.questions import rejection_result
from sandbox_agent.errors import ProblemError, SandboxAgentError
from sandbox_agent.persist.store import PermissionRow, SessionRow, SessionStore
from sandbox_agent.server.client_names import EXPIRY, POLICY
from sandbox_agent.server.permissions.inbox import (
    MAX_PENDING,
    Answering,
    request_envelope,
    request_metadata,
    request_options,
)
from sandbox_agent.server.permissions.policies import asked_paths, decide, policy_of
from sandbox_agent.wire.jsonrpc import members

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# If an answer fails (the store or the agent hangs), it is retried.
RETRY_SECONDS = 1.0
TRIES = 5


class _Signal(Protocol):
    def fire(self) -> None: ...


class _Listened(Protocol):
    """What is needed of a RecordedSession."""

    row: SessionRow

    @property
    def signal(self) -> _Signal:
        """Wakes the viewers of the session."""
        ...


class Watcher:
    """Watches the stored requests of all agents, and answers them by policy or on expiry.

    Expiry uses the monotonic clock, so a jump of the wall clock does not affect it.
    """

    def __init__(self, store: SessionStore, sessions: Answering) -> None:
        self._store = store
        self._sessions = sessions
        self._tasks: TaskGroup | None = None
        self._timers: dict[tuple[int, str], asyncio.TimerHandle] = {}
        # Requests that a policy should have answered, but could not.
        self._failed: set[tuple[int, str]] = set()

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Watcher]:
        """Watch while the context lasts, including the requests that are already stored."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for session, row in await self._store.pending_permissions(limit=MAX_PENDING):
                self._start_timer(session.session_id, row)
            try:
                yield self
            finally:
                self._tasks = None
                for timer in self._timers.values():
                    timer.cancel()
                tasks.cancel_scope.cancel()

    @property
    def pending(self) -> int:
        """The number of requests with a timer."""
        return len(self._timers)

    def on_stored(self, live: _Listened, row: PermissionRow) -> None:
        """Process a request or an answer that was just stored; never raises, never waits."""
        if self._tasks is None:
            return
        if row.answered is not None:
            self._failed.discard((row.key, row.permission_id))
            timer = self._timers.pop((row.key, row.permission_id), None)
            if timer is not None:
                timer.cancel()
            return
        self._start_timer(live.row.session_id, row)
        if live.row.settings is not None and row.kind == "permission":
            self._tasks.start_soon(self._apply, live, row)

    def _start_timer(self, session_id: str, row: PermissionRow) -> None:
        known = (row.key, row.permission_id)
        if row.expires_at is None or known in self._timers:
            return
        # For a request from before a restart, the elapsed time is that of the wall clock, which may have
        # jumped: the remaining time is at most the whole timeout.
        whole = row.expires_at - row.requested_at
        left = min(max(row.expires_at - time.time_ns() // 1_000_000, 0), whole) / 1000
        self._timers[known] = asyncio.get_running_loop().call_later(left, self._expire, session_id, row)

    def _expire(self, session_id: str, row: PermissionRow) -> None:
        del self._timers[row.key, row.permission_id]
        if self._tasks is not None:
            self._tasks.start_soon(self._expire_request, session_id, row)

    async def waits_for_people(self, session: SessionRow, permission_id: str) -> bool:
        """Return whether a permission request has no answer, and none will come from its session's policy.

        Raises:
            PersistError: the store failed.
        """
        row = await self._store.permission(session.key, permission_id)
        if row is None or row.answered is not None:
            return False
        if session.settings is None or (row.key, permission_id) in self._failed:
            return True
        # It is read after the store, so that a failure meanwhile counts: its signal has fired already.
        by_policy = await _answer_of_policy(self._store, session, row) is not None
        return not by_policy or (row.key, permission_id) in self._failed

    async def _apply(self, live: _Listened, row: PermissionRow) -> None:
        session = live.row

        async def result() -> dict[str, Any] | None:
            return await _answer_of_policy(self._store, session, row)

        if not await self._answer(session.session_id, row, result, POLICY):
            self._failed.add((row.key, row.permission_id))
            live.signal.fire()

    async def _expire_request(self, session_id: str, row: PermissionRow) -> None:
        async def result() -> dict[str, Any] | None:
            if row.kind == "permission":
                return verdict_outcome(row.permission_id, request_options(row), "reject")
            try:
                asked = await request_envelope(self._store, row)
            except SandboxAgentError:
                asked = {}
            return rejection_result(str(asked.get("method") or "elicitation/create"))

        await self._answer(session_id, row, result, EXPIRY)

    async def _answer(
        self,
        session_id: str,
        row: PermissionRow,
        result: Callable[[], Awaitable[dict[str, Any] | None]],
        by: str,
    ) -> bool:
        """Answer a request, if there is a result; return False if that failed."""
        for attempt in range(1, TRIES + 1):
            try:
                found = await result()
                if found is not None:
                    await self._sessions.answer(session_id, row.permission_id, found, by)
                return True
            except SandboxAgentError as error:
                if isinstance(error, ProblemError) and (error.status or 500) < 500:
                    return False  # it is no longer pending
                logger.warning(
                    "%s '%s' could not be answered by %s (%s)", row.kind, row.permission_id, by, error
                )
            except Exception:  # one failed answer must not stop the watcher
                logger.exception("%s '%s' could not be answered by %s", row.kind, row.permission_id, by)
            if attempt < TRIES:
                await anyio.sleep(RETRY_SECONDS)
        return False


async def _answer_of_policy(
    store: SessionStore, session: SessionRow, row: PermissionRow
) -> dict[str, Any] | None:
    """Return the answer to a request by the policy of its session; None: people answer."""
    policy = policy_of(session)
    metadata = request_metadata(row)
    call: dict[str, Any] = {}
    if any(rule.path is not None for rule in policy.rules):
        # the event has no paths of the call's diffs
        params = members((await request_envelope(store, row)).get("params"))
        call = members(params.get("toolCall"))
    kind = metadata.get("kind")
    verdict = decide(policy, kind if isinstance(kind, str) else None, asked_paths(metadata, call))
    return verdict_outcome(row.permission_id, request_options(row), verdict)
