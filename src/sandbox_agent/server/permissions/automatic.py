"""Answers requests automatically: by a session's policy, and when a request expires."""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from sandbox_agent.engine.permissions import verdict_outcome
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
from sandbox_agent.server.permissions.question_answers import rejection_result
from sandbox_agent.wire.jsonrpc import members

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# If an answer fails (the store or the agent hangs), it is retried.
RETRY_SECONDS = 1.0
TRIES = 5


class _Listened(Protocol):
    """What is needed of a RecordedSession."""

    row: SessionRow


class Watcher:
    """Watches the stored requests of all agents, and answers them by policy or on expiry.

    Expiry uses the monotonic clock, so a jump of the wall clock does not affect it.

    Args:
        store: the store of the requests.
        sessions: sends the answers.
    """

    def __init__(self, store: SessionStore, sessions: Answering) -> None:
        self._store = store
        self._sessions = sessions
        self._tasks: TaskGroup | None = None
        self._changed = anyio.Event()
        self._numbers = itertools.count()
        self._due: list[tuple[float, int]] = []
        self._pending: dict[int, tuple[str, PermissionRow]] = {}
        self._number_of: dict[tuple[int, str], int] = {}

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Watcher]:
        """Watch while the context lasts, including the requests that are already stored."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for session, row in await self._store.pending_permissions(limit=MAX_PENDING):
                self._wait(session.session_id, row)
            tasks.start_soon(self._expire)
            try:
                yield self
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    @property
    def pending(self) -> int:
        """The number of requests with a timer."""
        return len(self._pending)

    @property
    def timers(self) -> int:
        """The number of timers, including those of answered requests."""
        return len(self._due)

    def on_stored(self, live: _Listened, row: PermissionRow) -> None:
        """Process a request or an answer that was just stored; never raises, never waits."""
        if self._tasks is None:
            return
        if row.answered is not None:
            number = self._number_of.pop((row.key, row.permission_id), None)
            if number is not None:
                del self._pending[number]
                self._prune()
            return
        self._wait(live.row.session_id, row)
        if live.row.settings is not None and row.kind == "permission":
            self._tasks.start_soon(self._apply, live.row, row)

    def _wait(self, session_id: str, row: PermissionRow) -> None:
        known = (row.key, row.permission_id)
        if row.expires_at is None or known in self._number_of:
            return
        # For a request from before a restart, the elapsed time is that of the wall clock, which may have
        # jumped: the remaining time is at most the whole timeout.
        whole = row.expires_at - row.requested_at
        left = min(max(row.expires_at - time.time_ns() // 1_000_000, 0), whole) / 1000
        number = next(self._numbers)
        self._number_of[known] = number
        self._pending[number] = (session_id, row)
        heapq.heappush(self._due, (anyio.current_time() + left, number))
        self._changed.set()

    def _prune(self) -> None:
        # Remove the timers of answered requests when they are the majority, so that memory stays bounded.
        if len(self._due) > 2 * len(self._pending) + 16:
            self._due = [due for due in self._due if due[1] in self._pending]
            heapq.heapify(self._due)

    async def _expire(self) -> None:
        while True:
            self._changed = anyio.Event()
            now = anyio.current_time()
            while self._due and self._due[0][0] <= now:
                _, number = heapq.heappop(self._due)
                found = self._pending.pop(number, None)
                if found is not None and self._tasks is not None:
                    session_id, row = found
                    self._number_of.pop((row.key, row.permission_id), None)
                    self._tasks.start_soon(self._expire_request, session_id, row)
            left = self._due[0][0] - anyio.current_time() if self._due else None
            with anyio.move_on_after(left):
                await self._changed.wait()

    async def _apply(self, session: SessionRow, row: PermissionRow) -> None:
        policy = policy_of(session)
        metadata = request_metadata(row)
        try:
            call: dict[str, Any] = {}
            if any(rule.path is not None for rule in policy.rules):
                # the event has no paths of the call's diffs
                params = members((await request_envelope(self._store, row)).get("params"))
                call = members(params.get("toolCall"))
        except SandboxAgentError:
            logger.warning(
                "a policy cannot be applied: the request cannot be read from the store", exc_info=True
            )
            return
        kind = metadata.get("kind")
        paths = asked_paths(metadata, call)
        verdict = decide(policy, kind if isinstance(kind, str) else None, paths)
        result = verdict_outcome(row.permission_id, request_options(row), verdict)
        if result is not None:
            await self._answer(session.session_id, row, result, POLICY)

    async def _expire_request(self, session_id: str, row: PermissionRow) -> None:
        if row.kind == "permission":
            result = verdict_outcome(row.permission_id, request_options(row), "reject")
        else:
            try:
                asked = await request_envelope(self._store, row)
            except SandboxAgentError:
                asked = {}
            result = rejection_result(str(asked.get("method") or "elicitation/create"))
        if result is not None:
            await self._answer(session_id, row, result, EXPIRY)

    async def _answer(self, session_id: str, row: PermissionRow, result: dict[str, Any], by: str) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                await self._sessions.answer(session_id, row.permission_id, result, by)
                return
            except SandboxAgentError as error:
                if isinstance(error, ProblemError) and (error.status or 500) < 500:
                    return  # it is answered, or no longer pending
                logger.warning(
                    "%s '%s' could not be answered by %s (%s)", row.kind, row.permission_id, by, error
                )
            except Exception:  # one failed answer must not stop the watcher
                logger.exception("%s '%s' could not be answered by %s", row.kind, row.permission_id, by)
            if attempt < TRIES:
                await anyio.sleep(RETRY_SECONDS)
