"""One history: of two processes that write a session in one file, the older one is refused."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from sandbox_agent.errors import SessionFencedError
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, make_event, make_session

pytestmark = pytest.mark.anyio

PROGRAM = Path(__file__).parent / "programs" / "fenced_writer.py"


def command(path: Path, name: str, batches: int) -> list[str]:
    return [sys.executable, str(PROGRAM), str(path), "s", name, str(batches)]


async def lines(process: Process) -> AsyncIterator[str]:
    assert process.stdout is not None
    rest = ""
    async for part in TextReceiveStream(process.stdout):
        *whole, rest = (rest + part).split("\n")
        for line in whole:
            yield line


async def test_older_process_is_refused_and_the_history_has_no_seam(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    written: dict[str, list[str]] = {"old": [], "new": []}
    last_words: list[str] = []
    with anyio.fail_after(60):
        async with await anyio.open_process(command(path, "old", 0)) as old:
            heard = lines(old)
            while len(written["old"]) < 15:
                written["old"] += (await anext(heard)).split()
            new = await anyio.run_process(command(path, "new", 20))
            written["new"] = new.stdout.decode().split()
            async for line in heard:
                if line.startswith("fenced"):
                    last_words.append(line)
                else:
                    written["old"] += line.split()
        assert old.returncode == 0
    assert len(last_words) == 1
    assert "session 's' was taken over by another process, nothing was stored" in last_words[0]
    driver = SQLiteSessionPersistDriver(path)
    events = await all_events(driver, "s")
    record = await driver.get_session("s")
    await driver.close()
    assert [event.event_index for event in events] == list(range(1, len(events) + 1))
    # All that was acknowledged, the old one's first, and nothing else.
    assert [f"{event.id}={event.event_index}" for event in events] == [*written["old"], *written["new"]]
    assert len(written["new"]) == 60
    assert record is not None
    assert record.agent == "new"


async def test_both_processes_claim_at_once_and_one_history_is_left(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for name in ("a", "b"):
                group.start_soon(anyio.run_process, command(path, name, 30))
    driver = SQLiteSessionPersistDriver(path)
    events = await all_events(driver, "s")
    await driver.close()
    assert [event.event_index for event in events] == list(range(1, len(events) + 1))
    writers = [event.id[0] for event in events]
    # Whoever came second has written all of it; the other one was refused in between, if it was still there.
    assert writers == sorted(writers) or writers == sorted(writers, reverse=True)
    assert writers.count(writers[-1]) == 90


async def test_generation_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    first = SQLiteSessionPersistDriver(path)
    generation = await first.claim_session("s")
    await first.close()
    second = SQLiteSessionPersistDriver(path)
    assert await second.claim_session("s") > generation
    with pytest.raises(SessionFencedError):
        await second.append_events("s", [make_event("e")], generation=generation)
    await second.close()


async def test_one_fenced_caller_costs_no_other_caller_its_own(tmp_path: Path) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
    old = await driver.claim_session("s")
    new = await driver.claim_session("s")
    refused: list[Exception] = []

    async def append(number: int) -> None:
        generation = old if number % 4 == 0 else new
        try:
            await driver.append_events("s", [make_event(f"e{number}")], generation=generation)
        except SessionFencedError as error:
            refused.append(error)

    # One tick: they share a transaction.
    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(append, number)
    events = await all_events(driver, "s")
    await driver.close()
    assert len(refused) == 10
    assert [event.event_index for event in events] == list(range(1, 31))


async def test_file_that_nobody_claimed_or_deleted_in_has_no_tables_but_the_shared_ones(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"

    def tables() -> set[str]:
        with closing(sqlite3.connect(path)) as connection:
            return {
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
            }

    driver = SQLiteSessionPersistDriver(path)
    await driver.update_session(make_session("s"))
    await driver.append_events("s", [make_event("e")])
    # A generation of another file, which was put in the place of this one: nobody claimed it here.
    await driver.append_events("s", [make_event("f")], generation=7)
    await driver.insert_event("s", make_event("g", index=3))
    assert tables() == {"sessions", "events"}
    await driver.claim_session("s")
    assert tables() == {"sessions", "events", "session_writers"}
    await driver.close()
