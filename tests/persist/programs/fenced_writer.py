"""Claim a session, append batches, and print each one's ids once they are acknowledged.

Usage: fenced_writer.py STORE SESSION NAME BATCHES (0: until another one claims the session)
"""

import asyncio
import itertools
import sys

from sandbox_agent.errors import SessionFencedError
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import make_event, make_session


async def main(store: str, session_id: str, name: str, batches: int) -> None:
    driver = SQLiteSessionPersistDriver(store)
    generation = await driver.claim_session(session_id)
    await driver.save_session(make_session(session_id, agent=name), generation=generation)
    for batch in itertools.count() if batches == 0 else range(batches):
        events = [make_event(f"{name}-{batch}-{part}", session_id) for part in range(3)]
        try:
            await driver.append_events(session_id, events, generation=generation)
        except SessionFencedError as error:
            print("fenced", error, sep="\t", flush=True)
            break
        print(*(f"{event.id}={event.event_index}" for event in events), flush=True)
    await driver.close()


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
