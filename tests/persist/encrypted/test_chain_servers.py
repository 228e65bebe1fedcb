"""The chain in databases: what is missing there is met, and an append stays one step."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import NotLastError, SessionPersistDriver
from sandbox_agent.persist.encrypted.chain import HEAD_PREFIX
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.persist.sql.log import Log
from sandbox_agent.testing.drivers import all_events, make_event
from tests.persist.encrypted.conftest import KEY, Interrupted
from tests.persist.encrypted.test_chain import fill, problems

pytestmark = pytest.mark.anyio

_asyncpg: Any = importlib.import_module("asyncpg")
_redis: Any = importlib.import_module("redis.asyncio")


class Attacked:
    """A store, and what removes an event of the session s from it without the driver."""

    store: SessionPersistDriver

    async def remove(self, index: int) -> None:
        raise NotImplementedError

    async def remove_head(self) -> None:
        raise NotImplementedError


class AttackedPostgres(Attacked):
    def __init__(self, dsn: str) -> None:
        self.store = PostgresSessionPersistDriver(dsn)
        self._dsn = dsn

    async def remove(self, index: int) -> None:
        connection = await _asyncpg.connect(self._dsn, statement_cache_size=0)
        await connection.execute("DELETE FROM events WHERE session_id = 's' AND event_index = $1", index)
        await connection.close()

    async def remove_head(self) -> None:
        connection = await _asyncpg.connect(self._dsn, statement_cache_size=0)
        await connection.execute("UPDATE session_writers SET head = NULL WHERE session_id = 's'")
        await connection.close()


class AttackedRedis(Attacked):
    def __init__(self, url: str) -> None:
        self.store = RedisSessionPersistDriver(url)
        self._url = url

    async def remove(self, index: int) -> None:
        async with _redis.from_url(self._url) as client:
            (key,) = [one async for one in client.scan_iter("*{s}*events*")]
            assert await client.xdel(key, f"{index}-0") == 1

    async def remove_head(self) -> None:
        async with _redis.from_url(self._url) as client:
            (key,) = [one async for one in client.scan_iter("*{s}*meta*")]
            assert await client.hdel(key, "head") == 1


@pytest.fixture(params=["postgres", "redis"])
async def attacked(request: pytest.FixtureRequest) -> AsyncIterator[Attacked]:
    if request.param == "postgres":
        attacked: Attacked = AttackedPostgres(request.getfixturevalue("postgres_dsn"))
    else:
        attacked = AttackedRedis(request.getfixturevalue("redis_url"))
    await fill(attacked.store)
    yield attacked
    await attacked.store.close()


def encrypt(store: SessionPersistDriver) -> EncryptedSessionPersistDriver:
    return EncryptedSessionPersistDriver(store, key=KEY)


async def test_a_hole_and_a_cut_tail_are_met(attacked: Attacked) -> None:
    assert await problems(encrypt(attacked.store)) == []
    await attacked.remove(3)
    for limit in (1, 100):
        with pytest.raises(PersistError, match="event 3 is missing before event 4"):
            await all_events(encrypt(attacked.store), "s", limit=limit)
    await attacked.remove(6)
    with pytest.raises(PersistError, match="event 6 is missing at the end"):
        await encrypt(attacked.store).tail_events("s", limit=1)
    assert await problems(encrypt(attacked.store)) == [
        "s: event 3 is missing before event 4",
        "s: event 6 is missing at the end",
    ]


async def test_an_append_for_another_end_stores_nothing(attacked: Attacked) -> None:
    store = attacked.store
    head = await store.find_head("s", HEAD_PREFIX + "s")
    assert head is not None
    before = await all_events(store, "s")
    changed = head.copy()
    changed.payload_json = b"{}"
    for after, names, known in ((5, "x", {}), (7, "x", {}), (6, ("x", "s-6", "s-2"), {"s-6": 6, "s-2": 2})):
        events = [make_event(name, index=index) for index, name in enumerate(names, after + 1)]
        with pytest.raises(NotLastError) as info:
            await store.append_sealed("s", events, changed, after=after)
        assert info.value.known == known
    generation = await store.claim_session("s")
    await store.claim_session("s")
    with pytest.raises(SessionFencedError):
        await store.append_sealed("s", [make_event("x", index=7)], changed, after=6, generation=generation)
    assert await all_events(store, "s") == before
    assert await store.find_head("s", HEAD_PREFIX + "s") == head


async def test_a_head_of_an_older_release_is_read_until_the_next_append(attacked: Attacked) -> None:
    """It was the only event of a hidden session."""
    store = attacked.store
    head = await store.find_head("s", HEAD_PREFIX + "s")
    assert head is not None
    await attacked.remove_head()
    assert await problems(encrypt(store)) == ["s: the head of its chain is missing"]
    await store.insert_event(head.session_id, head)
    assert await problems(encrypt(store)) == []
    await encrypt(store).append_events("s", [make_event("s-7")])
    assert await all_events(store, HEAD_PREFIX + "s") == [head]
    assert (await store.find_head("s", HEAD_PREFIX + "s")) != head
    assert await problems(encrypt(store)) == []
    await encrypt(store).erase("s")
    assert await all_events(store, HEAD_PREFIX + "s") == []
    assert await store.find_head("s", HEAD_PREFIX + "s") is None


async def test_an_event_that_moved_changes_the_head(attacked: Attacked) -> None:
    store = attacked.store
    before = await store.find_head("s", HEAD_PREFIX + "s")
    moved = (await all_events(encrypt(store), "s"))[2]
    moved.event_index = 9
    await encrypt(store).insert_event("s", moved)
    assert await store.find_head("s", HEAD_PREFIX + "s") != before
    assert await problems(encrypt(store)) == []


async def test_sealed_appends_of_many_sessions_share_a_statement_of_postgres(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgresSessionPersistDriver(postgres_dsn)
    driver = encrypt(store)
    names = [f"s{number}" for number in range(20)]
    generations = {name: await driver.claim_session(name) for name in names}

    def alone(*_: object) -> None:
        raise AssertionError("an append took a transaction of its own")

    monkeypatch.setattr(Log, "append_sealed", alone)

    async def append(name: str) -> None:
        for number in range(3):
            events = [make_event(f"{name}-{number}-{one}", name) for one in range(4)]
            await driver.append_events(name, events, generation=generations[name])

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(append, name)
    for name in names:
        assert [event.event_index for event in await all_events(driver, name)] == list(range(1, 13))
    await store.close()


async def test_a_session_that_another_erasure_frees_is_never_half_erased(attacked: Attacked) -> None:
    """Another erasure ends just before the first one deletes, and the session is created again."""
    eraser_store = Interrupted(attacked.store)
    writer = encrypt(attacked.store)
    created = 0

    async def erase_and_create(name: str, _: str) -> None:
        nonlocal created
        if name == "delete" and not created:
            created += 1
            await encrypt(attacked.store).erase("s")
            await writer.append_events("s", [make_event("new-1"), make_event("new-2")])

    async def read(*_: str) -> None:
        if created:
            reader = encrypt(attacked.store)
            assert len(await all_events(reader, "s")) in (0, 2)
            assert (await reader.verify_chain("s"))[0] == []

    eraser_store.before, eraser_store.after = erase_and_create, read
    await encrypt(eraser_store).erase("s")
    assert created
    assert await all_events(encrypt(attacked.store), "s") == []
    assert await all_events(attacked.store, "s") == []
    assert await attacked.store.find_head("s", "~head:s") is None
