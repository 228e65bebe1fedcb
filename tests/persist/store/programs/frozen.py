"""Use a store on a file system that is read-only, then writable again.

Usage: frozen.py FOLDER, in a mount namespace of its own.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import Changes
from tests.persist.store.making import event, filled, opened, sequences

FOLDER = Path(sys.argv[1])


def mount(*options: str) -> None:
    subprocess.run(["mount", *options, str(FOLDER)], check=True)


async def prepare() -> None:
    async with opened(FOLDER / "store.db") as store:
        await store.commit(filled(1, 3))


async def main() -> None:
    with pytest.raises(PersistError, match=r"is read-only|can't be opened") as refusal:
        async with opened(FOLDER / "store.db"):
            pass
    print(refusal.value)
    mount("-o", "remount,rw")
    async with opened(FOLDER / "store.db") as store:
        await store.commit(Changes(events=[event(4)]))
        assert await sequences(store) == [1, 2, 3, 4]
    print("ok")


mount("-t", "tmpfs", "-o", "size=8m", "none")
asyncio.run(prepare())
mount("-o", "remount,ro")
asyncio.run(main())
