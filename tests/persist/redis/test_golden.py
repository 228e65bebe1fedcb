"""Databases that the release of commit 3f6a96b wrote open, and hold what they held."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.persist.store import SnapshotRow
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event
from tests.persist.redis.golden_keys import load_golden
from tests.persist.store.making import event, filled, indexes, listed, permission, sequences, session, turn
from tests.persist.store.redis_opening import NAMESPACE, opened_redis
from tests.support.redis import RedisServer, call

pytestmark = pytest.mark.anyio

BASE = f"sandbox-agent:server:{{{NAMESPACE}}}:"


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder), kind=request.param) as server:
        yield server


def index_keys(url: str) -> list[str]:
    """Return the keys of the full-text index that releases up to 3f6a96b kept."""
    names = [key.decode().removeprefix(BASE) for key in call(url, "KEYS", f"{BASE}*")]
    return [name for name in names if name.startswith(("w:", "wa:", "ws:", "m:")) or name == "range"]


async def test_server_store_of_an_earlier_release_holds_its_rows(server: RedisServer) -> None:
    url = server.fresh_url()
    load_golden(url, "server.json")
    async with opened_redis(url) as store:
        assert await listed(store) == [5, 3, 2, 1]
        found = await store.session("session-3")
        assert found == session(
            3, title="Three", managed=True, native_session_id="native", last_sequence=6, last_envelope=6
        )
        assert await store.native_session("claude", "native") == found
        assert await store.events(3, after=5, limit=9, max_bytes=9) == [
            event(6, 3, time=1_750_000_000_006, envelope=6)
        ]
        assert await sequences(store, 3) == await indexes(store, 3) == [1, 2, 3, 4, 5, 6]
        assert await sequences(store, 5) == await indexes(store, 5) == [3, 4]
        assert await store.turns(3, limit=9) == [
            turn(1, 3, idempotency_key="k", last_sequence=1, prompt=b'["old"]'),
            turn(2, 3, state="running"),
        ]
        assert [row.turn_id for _, row in await store.open_turns()] == ["turn_2"]
        assert await store.permission(3, "q") == permission("q", 3, answered="accepted")
        assert [row.permission_id for _, row in await store.pending_permissions(limit=9)] == ["p"]
        assert await store.snapshot(3) == SnapshotRow(3, 6, 6, b'{"a":1}')
        assert await store.next_key() == 6


async def test_server_store_of_an_earlier_release_goes_on(server: RedisServer) -> None:
    url = server.fresh_url()
    load_golden(url, "server.json")
    assert len(index_keys(url)) > 30
    async with opened_redis(url) as store:
        assert index_keys(url) == []
        assert call(url, "EXISTS", f"{BASE}v:0", f"{BASE}s:0") == 0
        # The delete that was interrupted is finished.
        assert await sequences(store, 4) == []
        assert await store.search("hidden", limit=9) == []
        hits = await store.search("golden", limit=99)
        assert {(hit.session_id, hit.sequence) for hit in hits} == {
            *(("session-3", number) for number in range(1, 8)),
            ("session-5", 3),
            ("session-5", 4),
        }
        (hit,) = await store.search('"golden end"', limit=9)
        assert hit.sequence == 7
        rows = filled(3, 8, text="golden word", native_session_id="native", title="Three", managed=True)
        await store.commit(rows)
        assert await sequences(store, 3) == list(range(1, 9))
        assert len(await store.search("golden", limit=99, session_id="session-3")) == 8
        for row in (await store.sessions(limit=9))[0]:
            await store.delete(row.key)
        assert await store.used_bytes() == 0


async def test_index_of_an_earlier_release_is_removed_among_the_keys_of_others(server: RedisServer) -> None:
    url = server.fresh_url()
    load_golden(url, "server.json")
    script = "for i = 1, 5000 do redis.call('SET', ARGV[1]..i, 1) end"
    names = ["x:w:", "sandbox-agent:server:{test}:w:", "sandbox-agent:server:{*}:w:", "w:"]
    for name in names:
        call(url, "EVAL", script, 0, name)
    async with opened_redis(url) as store:
        assert index_keys(url) == []
        assert len(await store.search("golden", limit=99)) == 9
    # A namespace may contain what is special in a pattern of SCAN.
    for key in ("range", "w:a"):
        call(url, "SET", f"sandbox-agent:server:{{*}}:{key}", 1)
    async with opened_redis(url, "*"):
        pass
    assert call(url, "EXISTS", "sandbox-agent:server:{*}:range", "sandbox-agent:server:{*}:w:a") == 0
    others = [name for name in names if "*" not in name]
    assert [call(url, "EXISTS", f"{name}{number}") for name in others for number in (1, 5_000)] == [1] * 6


async def test_driver_database_of_an_earlier_release_holds_its_sessions_and_goes_on(
    server: RedisServer,
) -> None:
    url = server.fresh_url()
    load_golden(url, "driver.json")
    driver = RedisSessionPersistDriver(url)
    assert [record.id for record in await all_sessions(driver)] == ["one", "tw{o}"]
    record = await driver.get_session("one")
    assert record is not None
    assert (record.agent, record.created_at, record.agent_session_id) == ("mock", 1_000, "agent-one")
    events = await all_events(driver, "one")
    assert [(one.id, one.event_index) for one in events] == [
        ("e1", 1),
        ("e2", 2),
        ("e3", 3),
        ("e4", 4),
        ("e9", 9),
    ]
    assert events[1].payload_json == b'{"new":1}'
    assert await driver.last_event_index("one") == 9
    again, new = make_event("e3", "one"), make_event("e10", "one")
    generation = await driver.claim_session("one")
    await driver.append_events("one", [again, new], generation=generation)
    assert (again.event_index, new.event_index) == (3, 10)
    await driver.delete_session("tw{o}")
    assert [record.id for record in await all_sessions(driver)] == ["one"]
    await driver.close()
