"""Answers for people: by a session's policy at once, and when a request has waited too long."""

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

from sandbox_agent.errors import ProblemError, SandboxAgentError
from sandbox_agent.persist.store.base import SessionStore
from sandbox_agent.persist.store.rows import PermissionRow, SessionRow
from sandbox_agent.server.client_names import EXPIRY, POLICY
from sandbox_agent.server.permissions.inbox import (
    MAX_PENDING,
    Answering,
    asked_envelope,
    asked_metadata,
    asked_options,
)
from sandbox_agent.server.permissions.policies import asked_paths, decide, policy_of, verdict_result
from sandbox_agent.server.permissions.question_answers import rejection_result
from sandbox_agent.wire.members import members

__all__ = ["Watcher"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Answers that did not go through (the store or the agent hangs) are tried again so soon, so often.
RETRY_SECONDS = 1.0
TRIES = 5


class _Listened(Protocol):
    """What is needed of a RecordedSession."""

    row: SessionRow


class Watcher:
    """Sees every request of an agent once it is stored.

    Time is the monotonic clock's: a wall clock that jumps neither expires a request early nor keeps it.

    Args:
        store: where the requests are.
        sessions: sends the answers.
    """

    def __init__(self, store: SessionStore, sessions: Answering) -> None:
        self._store = store
        self._sessions = sessions
        self._tasks: TaskGroup | None = None
        self._changed = anyio.Event()
        self._numbers = itertools.count()
        self._due: list[tuple[float, int]] = []
        self._waiting: dict[int, tuple[str, PermissionRow]] = {}
        self._number_of: dict[tuple[int, str], int] = {}

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Watcher]:
        """Watch while the context lasts; requests that were stored before are watched, too."""
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
    def waiting(self) -> int:
        """How many requests have a timer."""
        return len(self._waiting)

    @property
    def timers(self) -> int:
        """How many timers are held, those of answered requests included."""
        return len(self._due)

    def seen(self, live: _Listened, row: PermissionRow) -> None:
        """Take a request that has just been stored, or the answer to one; never raises, never waits."""
        if self._tasks is None:
            return
        if row.answered is not None:
            number = self._number_of.pop((row.key, row.permission_id), None)
            if number is not None:
                del self._waiting[number]
                self._prune()
            return
        self._wait(live.row.session_id, row)
        if live.row.settings is not None and row.kind == "permission":
            self._tasks.start_soon(self._apply, live.row, row)

    def _wait(self, session_id: str, row: PermissionRow) -> None:
        known = (row.key, row.permission_id)
        if row.expires_at is None or known in self._number_of:
            return
        # A request that was stored before a restart has waited by the wall clock, which may have jumped:
        # at most the whole of its time is left.
        whole = row.expires_at - row.requested_at
        left = min(max(row.expires_at - time.time_ns() // 1_000_000, 0), whole) / 1000
        number = next(self._numbers)
        self._number_of[known] = number
        self._waiting[number] = (session_id, row)
        heapq.heappush(self._due, (anyio.current_time() + left, number))
        self._changed.set()

    def _prune(self) -> None:
        # Timers of what has been answered go when they are the most: memory follows what waits.
        if len(self._due) > 2 * len(self._waiting) + 16:
            self._due = [due for due in self._due if due[1] in self._waiting]
            heapq.heapify(self._due)

    async def _expire(self) -> None:
        while True:
            self._changed = anyio.Event()
            now = anyio.current_time()
            while self._due and self._due[0][0] <= now:
                _, number = heapq.heappop(self._due)
                found = self._waiting.pop(number, None)
                if found is not None and self._tasks is not None:
                    session_id, row = found
                    self._number_of.pop((row.key, row.permission_id), None)
                    self._tasks.start_soon(self._give_up, session_id, row)
            left = self._due[0][0] - anyio.current_time() if self._due else None
            with anyio.move_on_after(left):
                await self._changed.wait()

    async def _apply(self, session: SessionRow, row: PermissionRow) -> None:
        policy = policy_of(session)
        metadata = asked_metadata(row)
        try:
            call: dict[str, Any] = {}
            if any(rule.path is not None for rule in policy.rules):
                # the event does not name the files of the call's diffs
                params = members((await asked_envelope(self._store, row)).get("params"))
                call = members(params.get("toolCall"))
        except SandboxAgentError:
            logger.warning("a policy can't be applied: the store does not say what was asked", exc_info=True)
            return
        kind = metadata.get("kind")
        paths = asked_paths(metadata, call)
        verdict = decide(policy, kind if isinstance(kind, str) else None, paths)
        result = verdict_result(row.permission_id, asked_options(row), verdict)
        if result is not None:
            await self._answer(session.session_id, row, result, POLICY)

    async def _give_up(self, session_id: str, row: PermissionRow) -> None:
        if row.kind == "permission":
            result = verdict_result(row.permission_id, asked_options(row), "reject")
        else:
            try:
                asked = await asked_envelope(self._store, row)
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
                    return  # someone was first, or nobody waits for it any more
                logger.warning("%s '%s' is not answered by %s (%s)", row.kind, row.permission_id, by, error)
            except Exception:  # the boundary: one answer that fails must not end the others
                logger.exception("%s '%s' is not answered by %s", row.kind, row.permission_id, by)
            if attempt < TRIES:
                await anyio.sleep(RETRY_SECONDS)
