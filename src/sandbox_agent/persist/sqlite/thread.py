"""One thread that owns one SQLite connection: what arrives together is committed together."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from sandbox_agent.persist.fairness import give_way_until_done
from sandbox_agent.persist.sqlite.worker import BUSY_TIMEOUT, MEMORY, TEMPORARY, UNNAMED, Job, Worker

__all__ = ["BUSY_TIMEOUT", "MEMORY", "TEMPORARY", "UNNAMED", "SQLiteThread"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class SQLiteThread:
    """Runs functions on one SQLite connection, in a thread that it owns.

    Jobs that wait together run in one transaction and are durable (WAL, synchronous=FULL: against a
    killed process and a lost machine) before any of them returns. A job that raises is undone alone;
    the others of its batch are kept. The thread starts, and the file is opened, with the first job; a
    file that can't be opened fails that job and is tried again by the next.

    It may be used from several event loops, one after another or at once. Several users may share one
    thread, each with its own tables.

    Args:
        path: the database file, made with its parent folders where missing, ``":memory:"``, or ``""`` for
            one on disk that has no name and goes with the thread.
        prepare: called in the thread with every newly opened connection, before any job.
        read_only: jobs only read: no transactions are begun, and writing fails.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prepare: Callable[[sqlite3.Connection], None] | None = None,
        read_only: bool = False,
    ) -> None:
        # Absolute at once: the process may change its folder before the first job opens the file.
        text = os.fspath(path)
        self.path: str = text if text in UNNAMED or os.path.isabs(text) else str(Path(text).absolute())  # noqa: PTH117
        self._worker = Worker(self.path, prepare, read_only)
        # The worker knows nothing of this object, so one that is dropped unclosed ends its thread.
        weakref.finalize(self, self._worker.stop).atexit = False

    async def run(self, work: Work[T], *, transaction: bool = True) -> T:
        """Run ``work(connection)`` in the thread and return what it returns, after the commit.

        ``work`` may run more than once (a batch that fails is undone and run again, job by job), so it
        must change nothing but the database, and must not begin or end transactions; savepoints are
        fine. A caller that is cancelled does not stop its job.

        Args:
            work: takes the connection.
            transaction: False runs it alone and outside a transaction (VACUUM, checkpoints).

        Raises:
            PersistError: SQLite failed (nothing of this job is stored), or the thread is closed.
            Exception: whatever ``work`` raised.
        """
        return await self.submit(work, transaction=transaction)

    def submit(self, work: Work[T], *, transaction: bool = True) -> Awaitable[T]:
        """Accept a job now, in the order of the calls, and return what ``run`` would wait for."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._worker.enqueue(Job(work, transaction, loop, future))
        give_way_until_done(future)
        return future

    async def close(self) -> None:
        """Finish what was accepted, close the file and end the thread. Safe to call twice."""
        self._worker.stop()
        if self._worker.is_running:
            # Bounded by the join's own timeout.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._worker.join)
