"""Append batches to a session and print each one's ids once they are acknowledged.

Usage: writer.py STORE SESSION NAME BATCHES (0: until killed)
"""

import asyncio
import itertools
import sys

from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import make_event


async def main(store: str, session_id: str, name: str, batches: int) -> None:
    driver = SQLiteSessionPersistDriver(store)
    for batch in itertools.count() if batches == 0 else range(batches):
        events = [make_event(f"{name}-{batch}-{part}", session_id) for part in range(3)]
        await driver.append_events(session_id, events)
        print(*(f"{event.id}={event.event_index}" for event in events), flush=True)
    await driver.close()


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
