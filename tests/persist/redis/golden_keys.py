"""Databases that earlier releases wrote, as JSON files of plain keys and values.

``python -m tests.persist.redis.golden_keys`` writes the files of the release that is checked out. The files
of an earlier release are never written again: they are what a database of that release holds.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.persist.store import Changes, SnapshotRow, TextRow
from sandbox_agent.testing.drivers import make_event, make_session
from tests.persist.store.making import (
    TIME,
    envelope,
    event,
    fill,
    filled,
    permission,
    sequences,
    session,
    turn,
)
from tests.persist.store.redis_opening import opened_redis
from tests.support.redis import RedisServer, call

__all__ = ["GOLDEN", "load_golden"]

GOLDEN = Path(__file__).parent / "golden"

# Reads a key of each type as the words of the command that writes it again.
_READERS = {
    b"string": ("SET", ("GET",)),
    b"hash": ("HSET", ("HGETALL",)),
    b"set": ("SADD", ("SMEMBERS",)),
    b"zset": ("ZADD", ("ZRANGE", 0, -1, "WITHSCORES")),
    b"stream": ("XADD", ("XRANGE", "-", "+")),
}


def load_golden(url: str, name: str) -> None:
    """Write the keys of a golden file into an empty database."""
    for words in json.loads((GOLDEN / name).read_text()):
        call(url, *(word.encode("latin-1") for word in words))


def dump(url: str) -> list[list[str]]:
    """Return commands that write all keys of a database; keys that expire are left out."""
    commands: list[list[bytes]] = []
    for key in sorted(call(url, "KEYS", "*")):
        if call(url, "PTTL", key) >= 0:
            continue
        command, (reader, *rest) = _READERS[call(url, "TYPE", key)]
        found: Any = call(url, reader, key, *rest)
        start = [command.encode(), key]
        match command:
            case "SET":
                commands.append([*start, found])
            case "HSET":
                commands.append([*start, *(word for pair in sorted(found.items()) for word in pair)])
            case "SADD":
                commands.append([*start, *sorted(found)])
            case "ZADD":
                commands.append([*start, *(word for name, at in found for word in (b"%d" % at, name))])
            case _:
                for entry_id, fields in found:
                    commands.append([*start, entry_id, *(word for pair in fields.items() for word in pair)])
    return [[word.decode("latin-1") for word in command] for command in commands]


def write(url: str, name: str) -> None:
    commands = dump(url)
    lines = ",\n".join(json.dumps(command) for command in commands)
    (GOLDEN / name).write_text(f"[\n{lines}\n]\n")


async def fill_server_store(url: str) -> None:
    """Commit at least one row of each kind, expire some of them, and leave a delete half done."""
    async with opened_redis(url) as store:
        for _ in range(4):
            await store.next_key()
        await fill(store)
        rows = filled(3, 6, text="golden word", native_session_id="native", title="Three", managed=True)
        rows.turns = [
            turn(1, 3, idempotency_key="k", last_sequence=1, prompt=b'["old"]'),
            turn(2, 3, state="running"),
        ]
        rows.permissions = [permission("p", 3), permission("q", 3, answered="accepted")]
        rows.snapshots = [SnapshotRow(3, 6, 6, b'{"a":1}')]
        rows.texts.append(TextRow(3, 7, TIME + 7, "long " * 200 + "golden end"))
        rows.envelopes += [envelope(1, 0, time=TIME + 99), envelope(2, 0, time=TIME + 99)]
        await store.commit(rows)
        expiring = filled(5, 4, time=TIME - 2, text="golden expiring", managed=True)
        await store.commit(expiring)
        await store.expire(before=TIME + 1)
        assert await sequences(store, 5) == [3, 4]
        await store.commit(Changes(sessions=[session(4)], events=[event(1, 4)]))
        await store.commit(Changes(texts=[TextRow(4, 1, TIME, "golden hidden")]))
        await store.hide(4)


async def fill_driver(url: str) -> None:
    """Store a record, events in and out of order, and a session that is deleted."""
    driver = RedisSessionPersistDriver(url)
    for number, name in enumerate(("one", "tw{o}")):
        await driver.update_session(make_session(name, created_at=1_000 + number))
        generation = await driver.claim_session(name)
        events = [make_event(f"e{n}", name) for n in range(1, 5)]
        await driver.append_events(name, events, generation=generation)
    await driver.insert_event("one", make_event("e2", "one", 2, payload=b'{"new":1}'))
    await driver.insert_event("one", make_event("e9", "one", 9))
    await driver.update_session(make_session("gone", created_at=999))
    await driver.append_events("gone", [make_event("e1", "gone")])
    await driver.delete_session("gone")
    await driver.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder), kind="redis") as server:
        for fill_database, name in ((fill_server_store, "server.json"), (fill_driver, "driver.json")):
            url = server.fresh_url()
            await fill_database(url)
            write(url, name)


if __name__ == "__main__":
    asyncio.run(main())
