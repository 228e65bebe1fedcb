"""Fill a small disk, then make room: what was acknowledged is there whole, and the store goes on.

Usage: full_disk.py FOLDER, in a mount namespace of its own: a file system of 2 MiB is put on FOLDER.
"""

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import Changes, TextRow
from tests.persist.store.making import TIME, envelope, event, indexes, opened, sequences, session, turn


async def main(folder: Path) -> None:
    ballast = folder / "ballast"
    ballast.write_bytes(b"x" * 800_000)
    async with opened(folder / "store.db") as store:
        await store.commit(Changes(sessions=[session()]))
        refusal: PersistError | None = None
        number = 0
        changes = Changes()
        while refusal is None:
            number += 1
            changes = Changes(
                sessions=[session(last_sequence=number)],
                events=[event(number, size=3_000)],
                envelopes=[envelope(number)],
                texts=[TextRow(1, number, TIME, f"word {number}")],
                turns=[turn(number)],
            )
            try:
                await store.commit(changes)
            except PersistError as error:
                refusal = error
        print(refusal)
        stored = list(range(1, number))
        assert stored
        assert await sequences(store) == await indexes(store) == stored
        assert [row.number for row in await store.turns(1, limit=9_999)] == stored
        row = await store.session("session-1")
        assert row is not None
        assert row.last_sequence == number - 1
        ballast.unlink()
        await store.commit(changes)
        for more in itertools.islice(itertools.count(number + 1), 10):
            await store.commit(Changes(events=[event(more)]))
    async with opened(folder / "store.db") as store:
        assert await sequences(store) == list(range(1, number + 11))
        await store.delete(1)
        assert await sequences(store) == []
    print("ok")


subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", sys.argv[1]], check=True)
asyncio.run(main(Path(sys.argv[1])))
