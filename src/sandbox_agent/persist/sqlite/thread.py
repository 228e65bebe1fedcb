"""One thread that owns one SQLite connection: what arrives together is committed together."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import anyio.to_thread

from sandbox_agent.errors import PersistError
from sandbox_agent.event_loop import running_loop
from sandbox_agent.persist.loops import give_way_until_done
from sandbox_agent.persist.private import create_private, make_private_folder, tighten
from sandbox_agent.persist.sqlite.errors import error_code, explain_sqlite

__all__ = ["BUSY_TIMEOUT", "MEMORY", "TEMPORARY", "UNNAMED", "SQLiteThread"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MEMORY: Final = ":memory:"
# SQLite's own name for a temporary file without a name.
TEMPORARY: Final = ""
UNNAMED: Final = frozenset({MEMORY, TEMPORARY})
# A file, and what SQLite keeps beside it.
_FILES: Final = ("", "-wal", "-shm", "-journal")
# How long a statement waits for another program's lock before it fails, in seconds. The server answers its
# clients with that error, and not with its own deadline, which is later.
BUSY_TIMEOUT: Final = 4.0
# Between two tries of what SQLite's own busy handler does not cover, in seconds.
_BUSY_PAUSE: Final = 0.02
# With more jobs in a transaction the first of them waits too long.
_BATCH_JOBS: Final = 1_000
# How long close() and the interpreter's exit wait for accepted jobs (a lock held elsewhere), in seconds.
_CLOSE_TIMEOUT: Final = 10.0
# Each batch size of an insert is a statement; the driver has a few dozen in all.
_CACHED_STATEMENTS: Final = 256
# 16 MiB of pages: the index of a million random ids stays warm. Negative means KiB.
_CACHE_KIB: Final = -16 * 1024
# Readers scan once; a small cache suffices.
_READ_CACHE_KIB: Final = -4 * 1024
# Checkpoint every 16 MiB of WAL: at the default of 4 MiB a busy store syncs the database file too often.
_CHECKPOINT_PAGES: Final = 4_096
# After these the connection is opened again: it may still refer to what the cause has left.
_REOPEN_AFTER: Final = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)

_logger = logging.getLogger("sandbox_agent.persist")


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
        same_file: the file that was opened first is the only one: while it is away, or another one has its
            name, jobs fail, and nothing is created in its place.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prepare: Callable[[sqlite3.Connection], None] | None = None,
        read_only: bool = False,
        same_file: bool = False,
    ) -> None:
        # Absolute at once: the process may change its folder before the first job opens the file.
        text = os.fspath(path)
        self.path: str = text if text in UNNAMED or os.path.isabs(text) else str(Path(text).absolute())  # noqa: PTH117
        self._worker = _Worker(self.path, prepare, read_only, same_file)
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
        loop = running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._worker.enqueue(_Job(work, transaction, loop, future))
        give_way_until_done(future)
        return future

    async def close(self) -> None:
        """Finish what was accepted, close the file and end the thread. Safe to call twice."""
        self._worker.stop()
        if self._worker.is_running:
            # Bounded by the join's own timeout.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._worker.join)


class _Job(NamedTuple):
    """Work for the thread, and the future of the caller that waits for it."""

    work: Callable[[sqlite3.Connection], Any]
    transaction: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class _Outcome(NamedTuple):
    job: _Job
    value: Any = None
    error: Exception | None = None


class _Worker:
    """The thread's side of a SQLiteThread, which describes what it promises."""

    def __init__(
        self,
        path: str,
        prepare: Callable[[sqlite3.Connection], None] | None,
        read_only: bool,
        same_file: bool,
    ) -> None:
        self._path = path
        self._prepare = prepare
        self._read_only = read_only
        self._same_file = same_file
        self._is_away = False
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # The process of the thread; a fork does not have it.
        self._pid = 0
        self._stopped = False
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    # Called from event loops.

    def enqueue(self, job: _Job) -> None:
        """Accept a job; the thread starts with the first.

        Raises:
            PersistError: it was stopped, or this process was forked from that of the thread.
        """
        if self._pid not in {0, os.getpid()}:
            raise PersistError(
                f"the store '{self._path}' was opened before this process was forked: open it in this process"
            )
        with self._lock:
            if self._stopped:
                raise PersistError(f"the store '{self._path}' is closed: open it again to go on")
            if self._thread is None:
                # A daemon never holds up the interpreter's exit; _finish_all flushes it there.
                thread = threading.Thread(target=self._main, name="sandbox-agent-sqlite", daemon=True)
                thread.start()
                self._thread = thread
                self._pid = os.getpid()
                _running.add(self)
            self._queue.put(job)

    def stop(self) -> None:
        """Take no more jobs; the thread ends after those that it has."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._queue.put(None)

    @property
    def is_running(self) -> bool:
        """Whether the thread was started and has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait until the thread has ended, within a bound."""
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT)

    # Called in the thread.

    def _main(self) -> None:
        try:
            stopping = False
            while not stopping:
                jobs, stopping = self._next_jobs()
                _deliver(self._execute(jobs))
        finally:
            self._disconnect()
            _running.discard(self)

    def _next_jobs(self) -> tuple[list[_Job], bool]:
        """Wait for a job and return all that wait with it; True if the thread is to end."""
        jobs: list[_Job] = []
        job = self._queue.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == _BATCH_JOBS:
                return jobs, False
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _execute(self, jobs: list[_Job]) -> list[_Outcome]:
        if not jobs:
            return []
        try:
            connection = self._connect()
        except Exception as error:  # noqa: BLE001 - each caller gets it
            return self._failed(jobs, error)
        outcomes: list[_Outcome] = []
        together = [job for job in jobs if job.transaction and not self._read_only]
        if together:
            outcomes += self._commit(connection, together)
        outcomes += [self._attempt(connection, job) for job in jobs if self._read_only or not job.transaction]
        stale = any(error_code(outcome.error) in _REOPEN_AFTER for outcome in outcomes if outcome.error)
        if (stale or connection.in_transaction) and self._path not in UNNAMED:
            self._disconnect()
        return self._explained(outcomes)

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> list[_Outcome]:
        """Run the jobs in one transaction; if that fails, apart, so that each has its own outcome."""
        for tries in (self._together, self._with_savepoints):
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                return self._failed(jobs, error)
            try:
                outcomes = tries(connection, jobs)
                connection.execute("COMMIT")
            except Exception as error:  # noqa: BLE001 - the next try gives it to the job that it belongs to
                _roll_back(connection)
                if len(jobs) == 1:
                    return [_Outcome(jobs[0], error=error)]
            else:
                return outcomes
        # The transaction as a whole can't be kept (a full disk): small jobs may still fit.
        return [outcome for job in jobs for outcome in self._commit(connection, [job])]

    def _together(self, connection: sqlite3.Connection, jobs: list[_Job]) -> list[_Outcome]:
        return [_Outcome(job, job.work(connection)) for job in jobs]

    def _with_savepoints(self, connection: sqlite3.Connection, jobs: list[_Job]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        for job in jobs:
            connection.execute("SAVEPOINT job")
            outcome = self._attempt(connection, job)
            if outcome.error is not None:
                # Raises where SQLite gave up the whole transaction (no space, no memory).
                connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            outcomes.append(outcome)
        return outcomes

    def _attempt(self, connection: sqlite3.Connection, job: _Job) -> _Outcome:
        try:
            return _Outcome(job, job.work(connection))
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            return _Outcome(job, error=error)

    def _failed(self, jobs: Iterable[_Job], error: Exception) -> list[_Outcome]:
        return self._explained([_Outcome(job, error=error) for job in jobs])

    def _explained(self, outcomes: list[_Outcome]) -> list[_Outcome]:
        return [
            outcome._replace(error=explain_sqlite(outcome.error, self._path))
            if isinstance(outcome.error, (sqlite3.Error, OverflowError, UnicodeError))
            else outcome
            for outcome in outcomes
        ]

    def _connect(self) -> sqlite3.Connection:
        if self._same_file and self._file is not None:
            self._require_same_file()
        elif self._connection is not None:
            if self._path in UNNAMED or _identity(self._path) == self._file:
                return self._connection
            # SQLite would continue to write into the file that has lost its name.
            self._disconnect()
            raise PersistError(
                f"the store '{self._path}' was moved or deleted while in use, nothing was stored: "
                "put it back, or try again to go on with an empty one"
            )
        if self._connection is not None:
            return self._connection
        if "\0" in self._path:
            raise PersistError(f"the store's path {self._path!r} has a null character: name another file")
        if self._path not in UNNAMED and not self._read_only:
            self._make_private()
        # A reader must not make the file that it misses.
        exists = (self._read_only and self._path not in UNNAMED) or (
            self._same_file and self._file is not None
        )
        connection = sqlite3.connect(
            f"{Path(self._path).as_uri()}?mode=rw" if exists else self._path,
            uri=exists,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            cached_statements=_CACHED_STATEMENTS,
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
            # Whatever is replaced or erased is overwritten.
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute(f"PRAGMA cache_size={_READ_CACHE_KIB if self._read_only else _CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            if self._prepare is not None:
                self._prepare(connection)
            if self._read_only:
                connection.execute("PRAGMA query_only=ON")
            else:
                _use_wal(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._file = _identity(self._path)
        return connection

    def _require_same_file(self) -> None:
        """Raise PersistError while the name is not that of the file; open it again once it is back.

        The connection stays open meanwhile, so a deleted file is not freed: what it holds can be rescued.
        """
        found = _identity(self._path)
        if found == self._file:
            if self._is_away:
                self._is_away = False
                self._disconnect()
            return
        self._is_away = True
        if found is None:
            raise PersistError(
                f"the store '{self._path}' was moved or deleted while in use, nothing is stored: put the "
                "same file back; without it, stop the server and start it with a copy or an empty store"
            )
        raise PersistError(
            f"the store '{self._path}' was replaced by another file while in use, nothing is stored: put the "
            "first one back, or restart the server to use this one; what is only in memory is lost then"
        )

    def _make_private(self) -> None:
        folder = Path(self._path).parent
        try:
            make_private_folder(folder)
        except OSError as error:
            raise PersistError(
                f"the store's folder '{folder}' can't be made: name another file, or make it "
                f"({error.strerror})"
            ) from error
        # What SQLite makes beside the file has the file's mode.
        create_private(self._path)
        # The log is beside the file that a link leads to.
        path = os.path.realpath(self._path)
        tighten(Path(path + suffix) for suffix in _FILES)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# Threads with something to flush when the interpreter ends.
_running: set[_Worker] = set()


@atexit.register
def _finish_all() -> None:
    for worker in list(_running):
        worker.stop()
    for worker in list(_running):
        worker.join()


def _identity(path: str) -> tuple[int, int] | None:
    """Return the identity of the file of that name, or None."""
    try:
        status = os.stat(path)  # noqa: PTH116 - once a batch, and Path.stat() costs as much again
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _roll_back(connection: sqlite3.Connection) -> None:
    # One that can't even be rolled back is closed, which undoes it (see _execute).
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; a file that can't be switched (read-only, no shared memory) stays as it is."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            # SQLite does not wait for its lock here, so we do.
            if error_code(error) == sqlite3.SQLITE_READONLY:
                return
            if error_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_PAUSE)
        else:
            return


def _deliver(outcomes: list[_Outcome]) -> None:
    """Wake every waiting event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.job.loop, []).append(outcome)
    for loop, its_outcomes in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, its_outcomes)
        except RuntimeError:  # the loop is closed: no caller waits there any more
            _report(its_outcomes)


def _resolve(outcomes: list[_Outcome]) -> None:
    abandoned: list[_Outcome] = []
    for outcome in outcomes:
        future = outcome.job.future
        if future.done():
            abandoned.append(outcome)
        elif outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome.value)
    _report(abandoned)


def _report(abandoned: list[_Outcome]) -> None:
    """Log the failures that no caller waits for."""
    for outcome in abandoned:
        if outcome.error is not None:
            _logger.error("a cancelled caller's write failed: %s", outcome.error)
