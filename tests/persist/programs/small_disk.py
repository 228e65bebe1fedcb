"""Fill a small disk, then make room: every acknowledged event is there, and the driver goes on.

Usage: small_disk.py FOLDER, in a mount namespace of its own: a file system of 1 MiB is put on FOLDER.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, make_event

PAYLOAD = b'{"jsonrpc":"2.0","method":"session/update","params":{"text":"%s"}}' % (b"x" * 3_000)


async def main(folder: Path) -> None:
    ballast = folder / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    driver = SQLiteSessionPersistDriver(folder / "store.db")
    acknowledged: list[str] = []
    refusal: PersistError | None = None
    while refusal is None:
        event = make_event(f"e{len(acknowledged)}", payload=PAYLOAD)
        try:
            await driver.append_events("s", [event])
        except PersistError as error:
            refusal = error
        else:
            acknowledged.append(event.id)
    print(refusal)
    assert "disk is full" in str(refusal)
    assert [event.id for event in await all_events(driver, "s")] == acknowledged
    ballast.unlink()
    await driver.append_events("s", [make_event("after")])
    await driver.close()
    again = SQLiteSessionPersistDriver(folder / "store.db")
    events = await all_events(again, "s")
    await again.close()
    assert [event.id for event in events] == [*acknowledged, "after"]
    assert [event.event_index for event in events] == list(range(1, len(events) + 1))
    print("ok", len(events))


subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", sys.argv[1]], check=True)
asyncio.run(main(Path(sys.argv[1])))
