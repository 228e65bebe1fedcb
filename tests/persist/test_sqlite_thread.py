"""What arrives together is committed together, and each caller has its own result."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.thread import BUSY_TIMEOUT, MEMORY, SQLiteThread

pytestmark = pytest.mark.anyio

Work = Callable[[sqlite3.Connection], int]


def make_table(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY)")


def put(number: int) -> Work:
    """Store a number that must not be there yet."""

    def work(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        return number

    return work


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT number FROM numbers ORDER BY number")]


class Gate:
    """Holds the thread inside a job, so that the jobs behind it are one batch."""

    def __init__(self, thread: SQLiteThread) -> None:
        self.thread = thread
        self.entered = anyio.Event()
        self.opened = threading.Event()

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()

        def hold(_connection: sqlite3.Connection) -> None:
            loop.call_soon_threadsafe(self.entered.set)
            assert self.opened.wait(30)

        self.held = self.thread.submit(hold, transaction=False)
        await self.entered.wait()

    async def __aexit__(self, *_: object) -> None:
        self.opened.set()
        await self.held


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "numbers.db"


@pytest.fixture
async def thread(path: Path) -> AsyncIterator[SQLiteThread]:
    thread = SQLiteThread(path, prepare=make_table)
    yield thread
    await thread.close()


def test_thread_is_durable_by_its_settings(path: Path) -> None:
    async def settings() -> tuple[str, int]:
        thread = SQLiteThread(path)
        try:
            journal = await thread.run(lambda c: str(c.execute("PRAGMA journal_mode").fetchone()[0]))
            return journal, await thread.run(lambda c: int(c.execute("PRAGMA synchronous").fetchone()[0]))
        finally:
            await thread.close()

    assert asyncio.run(settings()) == ("wal", 2)


async def test_thread_commits_jobs_that_wait_together_at_once(thread: SQLiteThread) -> None:
    statements: list[str] = []
    await thread.run(lambda connection: connection.set_trace_callback(statements.append))
    async with Gate(thread):
        statements.clear()
        jobs = [thread.submit(put(number)) for number in range(50)]
    assert await asyncio.gather(*jobs) == list(range(50))
    assert [one for one in statements if not one.startswith("INSERT")] == ["BEGIN IMMEDIATE", "COMMIT"]
    assert await thread.run(numbers) == list(range(50))


async def test_thread_acknowledges_only_what_others_can_read(thread: SQLiteThread, path: Path) -> None:
    await thread.run(put(1))
    with closing(sqlite3.connect(path)) as connection:
        assert numbers(connection) == [1]


async def test_one_bad_job_of_a_batch_fails_alone(thread: SQLiteThread) -> None:
    def fail_late(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO numbers VALUES (100)")
        raise LookupError("mine")

    async with Gate(thread):
        good = thread.submit(put(1))
        bad = thread.submit(fail_late)
        clash = thread.submit(put(1))
        fine = thread.submit(put(2))
    assert await good == 1
    with pytest.raises(LookupError, match="mine"):
        await bad
    with pytest.raises(PersistError, match="contradicts a row"):
        await clash
    assert await fine == 2
    assert await thread.run(numbers) == [1, 2]


async def test_a_job_that_costs_the_whole_transaction_does_not_cost_its_neighbours(
    thread: SQLiteThread,
) -> None:
    def give_up(connection: sqlite3.Connection) -> int:
        # What SQLite does by itself where memory or disk fail in the middle of a statement.
        connection.execute("ROLLBACK")
        raise sqlite3.OperationalError("gave up")

    async with Gate(thread):
        first = thread.submit(put(1))
        bad = thread.submit(give_up)
        second = thread.submit(put(2))
    assert [await first, await second] == [1, 2]
    with pytest.raises(PersistError, match="gave up"):
        await bad
    assert await thread.run(numbers) == [1, 2]


async def test_jobs_that_fit_are_stored_when_one_is_too_large_for_the_disk(thread: SQLiteThread) -> None:
    await thread.run(lambda c: c.execute("CREATE TABLE texts (text TEXT)").close())
    await thread.run(lambda c: c.execute("PRAGMA max_page_count = 20").close())

    def put_text(size: int) -> Callable[[sqlite3.Connection], None]:
        return lambda connection: connection.execute("INSERT INTO texts VALUES (?)", ("x" * size,)).close()

    async with Gate(thread):
        small = thread.submit(put_text(10))
        huge = thread.submit(put_text(1_000_000))
        other = thread.submit(put_text(20))
    await small
    await other
    with pytest.raises(PersistError, match="the disk is full"):
        await huge
    sizes = await thread.run(lambda c: c.execute("SELECT length(text) FROM texts ORDER BY 1").fetchall())
    assert sizes == [(10,), (20,)]


async def test_thread_waits_for_a_lock_then_fails_and_goes_on_when_it_is_free(
    thread: SQLiteThread, path: Path
) -> None:
    await thread.run(put(1))
    # The waiting itself is SQLite's; here it is cut short.
    await thread.run(lambda c: c.execute("PRAGMA busy_timeout = 50").close(), transaction=False)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(10):
            with pytest.raises(PersistError, match="is locked by another program, nothing was stored"):
                await thread.run(put(2))
            other.execute("COMMIT")
            assert await thread.run(put(3)) == 3
    assert await thread.run(numbers) == [1, 3]


async def test_thread_stores_as_soon_as_another_program_lets_go(thread: SQLiteThread, path: Path) -> None:
    await thread.run(put(1))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = thread.submit(put(2))
        # The thread asks for the lock at once; this only lets it begin to.
        await anyio.lowlevel.checkpoint()
        assert not asyncio.ensure_future(waiting).done()
        other.execute("COMMIT")
    with anyio.fail_after(BUSY_TIMEOUT):
        assert await waiting == 2


async def test_thread_makes_the_folders_of_its_file(tmp_path: Path) -> None:
    thread = SQLiteThread(tmp_path / "a" / "b" / "numbers.db", prepare=make_table)
    await thread.run(put(1))
    await thread.close()
    assert (tmp_path / "a" / "b" / "numbers.db").exists()


async def test_thread_names_a_cause_for_each_file_that_it_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, " * 100)
    (tmp_path / "folder").mkdir()
    for name, words in (
        ("text", "is not an SQLite database"),
        ("folder", "not a folder"),
        ("text/store.db", "folder .* can't be made"),
        ("nul\0.db", "."),
    ):
        thread = SQLiteThread(tmp_path / name)
        with pytest.raises(PersistError, match=words) as refusal:
            await thread.run(numbers)
        assert "\n" not in str(refusal.value)
        await thread.close()


async def test_thread_opens_the_file_once_its_cause_is_gone(path: Path) -> None:
    file = anyio.Path(path)
    await file.write_text("this is no database, " * 100)
    thread = SQLiteThread(path, prepare=make_table)
    with pytest.raises(PersistError):
        await thread.run(put(1))
    await file.unlink()
    assert await thread.run(put(1)) == 1
    await thread.close()


async def test_thread_says_so_when_its_file_was_deleted_and_begins_anew(
    thread: SQLiteThread, path: Path
) -> None:
    await thread.run(put(1))
    await anyio.Path(path).unlink()
    with pytest.raises(PersistError, match="moved or deleted while in use"):
        await thread.run(put(2))
    assert await thread.run(put(3)) == 3
    with closing(sqlite3.connect(path)) as connection:
        assert numbers(connection) == [3]


async def test_reader_sees_what_was_acknowledged_and_cannot_write(thread: SQLiteThread, path: Path) -> None:
    await thread.run(put(1))
    reader = SQLiteThread(path, read_only=True)
    try:
        for number in range(2, 20):
            await thread.run(put(number))
            assert await reader.run(numbers) == list(range(1, number + 1))
        with pytest.raises(PersistError, match="read-only"):
            await reader.run(put(99))
    finally:
        await reader.close()


async def test_reader_makes_no_file_that_is_missing(path: Path) -> None:
    reader = SQLiteThread(path, read_only=True)
    with pytest.raises(PersistError, match="can't be opened"):
        await reader.run(numbers)
    await reader.close()
    assert not await anyio.Path(path).exists()


async def test_cancelled_caller_does_not_stop_its_job(thread: SQLiteThread) -> None:
    async with Gate(thread):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await thread.run(put(7))
    assert await thread.run(numbers) == [7]


async def test_cancelled_callers_failure_is_logged(
    thread: SQLiteThread, caplog: pytest.LogCaptureFixture
) -> None:
    await thread.run(put(7))
    async with Gate(thread):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await thread.run(put(7))
    assert await thread.run(numbers) == [7]
    assert "a cancelled caller's write failed" in caplog.text


async def test_closing_finishes_what_was_accepted(path: Path) -> None:
    thread = SQLiteThread(path, prepare=make_table)
    jobs = [thread.submit(put(number)) for number in range(200)]
    await thread.close()
    assert await asyncio.gather(*jobs) == list(range(200))
    with closing(sqlite3.connect(path)) as connection:
        assert numbers(connection) == list(range(200))


async def test_closed_thread_refuses_work_and_closes_again(path: Path) -> None:
    thread = SQLiteThread(path, prepare=make_table)
    await thread.run(put(1))
    async with anyio.create_task_group() as group:
        group.start_soon(thread.close)
        group.start_soon(thread.close)
    await thread.close()
    with pytest.raises(PersistError, match="is closed"):
        await thread.run(put(2))


async def test_unused_thread_closes_without_having_started(path: Path) -> None:
    await SQLiteThread(path).close()
    assert not [one for one in threading.enumerate() if one.name == "sandbox-agent-sqlite"]
    assert not await anyio.Path(path).exists()


async def test_closing_ends_the_thread(path: Path) -> None:
    thread = SQLiteThread(path, prepare=make_table)
    await thread.run(put(1))
    (owned,) = [one for one in threading.enumerate() if one.name == "sandbox-agent-sqlite"]
    await thread.close()
    assert not owned.is_alive()


async def test_closing_works_inside_a_cancelled_scope(path: Path) -> None:
    thread = SQLiteThread(path, prepare=make_table)
    job = thread.submit(put(1))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await thread.close()
    assert await job == 1


async def test_dropped_thread_ends_by_itself(path: Path) -> None:
    thread = SQLiteThread(path, prepare=make_table)
    await thread.run(put(1))
    (owned,) = [one for one in threading.enumerate() if one.name == "sandbox-agent-sqlite"]
    del thread
    gc.collect()
    await anyio.to_thread.run_sync(owned.join, 10)
    assert not owned.is_alive()


def test_thread_serves_event_loops_one_after_another(path: Path) -> None:
    thread = SQLiteThread(path, prepare=make_table)
    assert asyncio.run(thread.run(put(1))) == 1
    assert asyncio.run(thread.run(put(2))) == 2
    assert asyncio.run(thread.run(numbers)) == [1, 2]
    asyncio.run(thread.close())


def test_thread_outlives_a_loop_that_left_a_job(path: Path) -> None:
    thread = SQLiteThread(path, prepare=make_table)

    async def leave() -> None:
        async with Gate(thread):
            asyncio.ensure_future(thread.submit(put(1))).cancel()
            thread.submit(put(2))

    asyncio.run(leave())
    assert asyncio.run(thread.run(numbers)) == [1, 2]
    asyncio.run(thread.close())


async def test_memory_is_kept_through_errors(path: Path) -> None:
    thread = SQLiteThread(MEMORY, prepare=make_table)
    await thread.run(put(1))
    with pytest.raises(PersistError):
        await thread.run(put(1))
    assert await thread.run(numbers) == [1]
    await thread.close()


async def test_thread_is_served_while_the_event_loop_is_busy(thread: SQLiteThread) -> None:
    # Each statement gives the interpreter's lock away; the thread has to win it back from the loop.
    numbers_to_2000 = "n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
    counting = f"WITH RECURSIVE {numbers_to_2000} SELECT sum(i) FROM n"

    def work(connection: sqlite3.Connection) -> None:
        for _ in range(300):
            connection.execute(counting).fetchone()

    await thread.run(numbers)
    job = asyncio.ensure_future(thread.submit(work))
    # Work that never lets the loop fall idle. Measured: 0.2 to 1 s; up to 30 s if the loop did not give way.
    for _ in range(15_000):
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        await anyio.lowlevel.checkpoint()
        if job.done():
            break
    assert job.done()
