"""Use a store on a file system that is read-only, then writable again.

Usage: read_only.py FOLDER, in a mount namespace of its own.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, make_event

FOLDER = Path(sys.argv[1])


def mount(*options: str) -> None:
    subprocess.run(["mount", *options, str(FOLDER)], check=True)


async def store(event_id: str) -> None:
    driver = SQLiteSessionPersistDriver(FOLDER / "store.db")
    await driver.append_events("s", [make_event(event_id)])
    await driver.close()


async def refused(driver: SQLiteSessionPersistDriver) -> None:
    with pytest.raises(PersistError, match=r"is read-only|can't be opened") as refusal:
        await driver.append_events("s", [make_event("refused")])
    print(refusal.value)


async def main() -> None:
    driver = SQLiteSessionPersistDriver(FOLDER / "store.db")
    await refused(driver)
    mount("-o", "remount,rw")
    await driver.append_events("s", [make_event("second")])
    assert [event.id for event in await all_events(driver, "s")] == ["first", "second"]
    await driver.close()
    print("ok")


mount("-t", "tmpfs", "-o", "size=8m", "none")
asyncio.run(store("first"))
mount("-o", "remount,ro")
asyncio.run(main())
