"""Commit batches to sessions and print each one's ends once it is acknowledged.

Usage: committer.py STORE
"""

import asyncio
import itertools
import sys
from pathlib import Path

from sandbox_agent.persist.store import Changes, TextRow
from tests.persist.store.making import TIME, envelope, event, opened, session, turn


async def main(path: Path) -> None:
    async with opened(path) as store:
        last = {1: 0, 2: 0}
        for number in itertools.count(1):
            changes = Changes()
            for key in last:
                added = range(last[key] + 1, last[key] + 1 + number % 7)
                last[key] = added.stop - 1
                changes.events += [event(one, key, size=one % 500, envelope=one) for one in added]
                changes.envelopes += [envelope(one, key) for one in added]
                changes.texts += [TextRow(key, one, TIME + one, f"word number{one}") for one in added]
                changes.sessions.append(session(key, last_sequence=last[key], last_envelope=last[key]))
                changes.turns.append(turn(number, key))
            await store.commit(changes)
            print(number, last[1], last[2], flush=True)


asyncio.run(main(Path(sys.argv[1])))
