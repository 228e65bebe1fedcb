"""Leave a driver unclosed, with a write accepted and nobody waiting for it.

Usage: forgetful.py STORE
"""

import asyncio
import sys

from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import make_event

driver = SQLiteSessionPersistDriver(sys.argv[1])


async def main() -> None:
    await driver.append_events("s", [make_event("acknowledged")])
    abandoned = asyncio.ensure_future(driver.append_events("s", [make_event("accepted")]))
    # One round of the loop: the append is in the thread's queue when the program ends.
    await asyncio.sleep(0)
    assert not abandoned.done()


asyncio.run(main())
print("end of main", flush=True)
