"""The store in Redis when its server is killed, full or away, its network fails, and two want it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.ledger import RedisSessionStore
from sandbox_agent.persist.redis.ledger_scripts import COMMIT
from sandbox_agent.persist.store import Changes, EventRow, SessionStore, SnapshotRow, TextRow
from tests.persist.store.making import (
    PLENTY,
    TIME,
    envelope,
    event,
    filled,
    indexes,
    permission,
    sequences,
    session,
    turn,
)
from tests.persist.store.redis_opening import NAMESPACE, opened_redis
from tests.support.proxy import TcpProxy
from tests.support.redis import RedisKind, RedisServer, call

pytestmark = pytest.mark.anyio

BASE = f"sandbox-agent:server:{{{NAMESPACE}}}:"
KINDS: list[RedisKind] = ["valkey", "redis"]


def hurry(monkeypatch: pytest.MonkeyPatch, *, lease: float, renew: float) -> None:
    monkeypatch.setattr("sandbox_agent.persist.redis.owner.LEASE_SECONDS", lease)
    monkeypatch.setattr("sandbox_agent.persist.redis.owner.RENEW_SECONDS", renew)


def batch(number: int, *, size: int = 0) -> Changes:
    """The rows of the number-th commit."""
    return Changes(
        sessions=[session(last_sequence=number, last_envelope=number)],
        events=[event(number, envelope=number, size=size)],
        envelopes=[envelope(number)],
        texts=[TextRow(1, number, TIME + number, f"word number{number}")],
        turns=[turn(number)],
    )


async def ask(url: str, *words: str) -> Any:
    """Run a command, and let the store work meanwhile."""
    return await anyio.to_thread.run_sync(call, url, *words)


async def check_whole(store: SessionStore, count: int) -> None:
    """The first so many batches are there, each whole and once, and nothing else."""
    numbers = list(range(1, count + 1))
    assert await sequences(store) == await indexes(store) == numbers
    assert [row.number for row in await store.turns(1, limit=PLENTY)] == numbers
    row = await store.session("session-1")
    assert row is not None
    assert row.last_sequence == row.last_envelope == count
    newest = await store.search(f"number{count}", limit=9, session_id="session-1")
    assert [hit.sequence for hit in newest] == [count]
    assert await store.search(f"number{count + 1}", limit=9, session_id="session-1") == []


@asynccontextmanager
async def behind_proxy(
    url: str, *, timeout: float = 15.0
) -> AsyncGenerator[tuple[RedisSessionStore, TcpProxy]]:
    host, _, database = url.removeprefix("redis://").partition("/")
    proxy = TcpProxy(int(host.rpartition(":")[2]))
    async with (
        proxy,
        opened_redis(f"redis://127.0.0.1:{proxy.port}/{database}", timeout=timeout) as store,
    ):
        yield store, proxy


@pytest.mark.parametrize("kind", KINDS)
async def test_store_has_every_acknowledged_commit_whole_when_redis_is_killed_and_goes_on_when_it_is_back(
    kind: RedisKind, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, kind=kind, durable=True) as server:
        async with opened_redis(server.url()) as store:
            acknowledged = 0
            refused = anyio.Event()
            enough = anyio.Event()
            refusals: list[str] = []

            async def write() -> None:
                nonlocal acknowledged
                while acknowledged < 120:
                    try:
                        await store.commit(batch(acknowledged + 1))
                    except PersistError as error:
                        refusals.append(str(error))
                        refused.set()
                        await anyio.sleep(0.01)  # as the recorder does: the same rows again
                        continue
                    acknowledged += 1
                    if acknowledged % 30 == 0:
                        enough.set()

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    group.start_soon(write)
                    for _ in range(3):
                        await enough.wait()
                        enough = anyio.Event()
                        refused = anyio.Event()
                        server.kill()
                        await refused.wait()
                        server.start()
            await check_whole(store, 120)
            assert not any("\n" in refusal for refusal in refusals)
        async with opened_redis(server.url()) as store:
            await check_whole(store, 120)


async def test_store_waits_for_the_lease_of_a_server_that_was_killed(redis_url: str) -> None:
    call(redis_url, "SET", f"{BASE}lease", "of a dead one", "PX", 400)
    async with opened_redis(redis_url) as store:
        await store.commit(batch(1))


async def test_store_is_refused_to_another_server_while_one_lives(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, lease=5.0, renew=0.1)
    async with opened_redis(redis_url) as store:
        other = RedisSessionStore(redis_url, namespace=NAMESPACE)
        with anyio.fail_after(4), pytest.raises(PersistError, match="belongs to another running server"):
            await other.open()
        await other.close()
        await store.commit(batch(1))
    async with opened_redis(redis_url) as store:
        await check_whole(store, 1)


async def test_store_renews_its_lease(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, lease=1.0, renew=0.05)
    async with opened_redis(redis_url):
        renewals, left = 0, 1000
        with anyio.fail_after(20):
            while renewals < 10:
                now = await ask(redis_url, "PTTL", f"{BASE}lease")
                assert now > 0
                renewals += now > left
                left = now


async def test_store_that_was_taken_over_writes_nothing_any_more(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, lease=0.3, renew=100)
    async with opened_redis(redis_url) as store:
        await store.commit(batch(1))
        async with opened_redis(redis_url) as successor:
            with pytest.raises(PersistError, match=r"nothing was stored: .* taken over by another server"):
                await store.commit(batch(2))
            with pytest.raises(PersistError, match="taken over"):
                await store.delete(1)
            with pytest.raises(PersistError, match="taken over"):
                await store.next_key()
            with pytest.raises(PersistError, match="taken over"):
                await store.expire(max_bytes=0)
            await check_whole(successor, 1)
            await successor.commit(batch(2))
        # That the first one ends doesn't take the lease from the second.
        async with opened_redis(redis_url) as successor:
            holder = call(redis_url, "GET", f"{BASE}lease")
            await store.close()
            assert call(redis_url, "GET", f"{BASE}lease") == holder
            await check_whole(successor, 2)


async def test_store_notices_that_it_was_taken_over_while_it_has_nothing_to_write(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hurry(monkeypatch, lease=0.2, renew=0.1)
    async with opened_redis(redis_url) as store:
        assert store.trouble is None
        call(redis_url, "HSET", f"{BASE}fence", "gen", "another")
        with anyio.fail_after(10):
            while "taken over by another server" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                await anyio.sleep(0.01)


async def test_store_says_so_when_its_database_was_emptied(redis_url: str) -> None:
    async with opened_redis(redis_url) as store:
        await store.commit(batch(1))
        call(redis_url, "FLUSHDB")
        with pytest.raises(PersistError, match="holds nothing any more"):
            await store.commit(batch(2))
        assert await store.sessions(limit=9) == ([], None)
    async with opened_redis(redis_url) as store:
        await store.commit(batch(1))
        await check_whole(store, 1)


async def test_stores_of_other_namespaces_in_one_database_see_nothing_of_each_other(redis_url: str) -> None:
    def rows(namespace: str) -> Changes:
        changes = filled(1, 20, text=f"word {namespace}", native_session_id="n", title=namespace)
        changes.turns, changes.permissions = [turn(1, state="running")], [permission("p")]
        return changes

    names = ["a", "b", "a}b{%", "{a}", "ü \U0001f980"]
    for name in names:
        async with opened_redis(redis_url, name) as store:
            assert await store.sessions(limit=9) == ([], None)
            assert await store.next_key() == 1
            await store.commit(rows(name))
    async with opened_redis(redis_url, "a") as first, opened_redis(redis_url, "b") as second:
        await first.delete(1)
        assert await first.used_bytes() == 0
        assert await first.search("word", limit=9) == []
        assert await first.open_turns() == []
        assert await first.pending_permissions(limit=9) == []
        assert await first.native_session("claude", "n") is None
        assert await first.next_key() == 2
        assert await sequences(second) == list(range(1, 21))
    for name in names[1:]:
        async with opened_redis(redis_url, name) as store:
            found = await store.session("session-1")
            assert found is not None
            assert found.title == name
            assert len(await store.search("word", limit=99)) == 20
            assert len(await store.open_turns()) == 1


async def test_all_keys_of_a_namespace_are_in_one_slot_of_a_cluster(redis_url: str) -> None:
    async with opened_redis(redis_url) as store:
        rows = filled(1, 20, text="word", native_session_id="n")
        rows.turns, rows.permissions = [turn(1, state="running")], [permission("p")]
        rows.snapshots = [SnapshotRow(1, 1, 1, b"{}")]
        await store.commit(rows)
        keys = call(redis_url, "KEYS", "*")
        assert len(keys) > 15
        assert all(key.startswith(BASE.encode()) for key in keys)


async def test_deleted_session_leaves_nothing_but_numbers(redis_url: str) -> None:
    async with opened_redis(redis_url) as store:
        await store.next_key()
        before = set(call(redis_url, "KEYS", "*"))
        for number in range(1, 4):
            rows = filled(number, 300, text="Xylophagous quintessential", native_session_id="n", title="Xylo")
            rows.turns = [turn(1, number, state="running", idempotency_key="k", prompt=b"Xylo")]
            rows.permissions = [permission("p", number), permission("q", number, answered="x")]
            rows.snapshots = [SnapshotRow(number, 1, 1, b"{}")]
            await store.commit(rows)
        for number in range(1, 4):
            await store.delete(number)
        left = {key.decode().removeprefix(BASE) for key in set(call(redis_url, "KEYS", "*")) - before}
        assert left == set()
        assert await store.used_bytes() == 0


async def fill_up(store: SessionStore, count: int) -> int:
    """Commit behind so many batches until there is no memory left; return how many it took."""
    more = 0
    refusal = ""
    while not refusal:
        try:
            await store.commit(batch(count + more + 1, size=20_000))
            more += 1
        except PersistError as error:
            refusal = str(error)
    assert "maxmemory" in refusal
    assert "\n" not in refusal
    return more


@pytest.mark.parametrize("kind", KINDS)
async def test_store_says_so_and_keeps_commits_whole_when_redis_has_no_memory_left(
    kind: RedisKind, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, kind=kind, options=("--maxmemory", "6mb")) as server:
        async with opened_redis(server.url()) as store:
            await store.commit(filled(2, 500, text="ballast"))
            count = await fill_up(store, 0)
            await check_whole(store, count)
            # What it needs for itself may have become less; sooner or later it refuses again.
            count += await fill_up(store, count)
            await check_whole(store, count)
            used = await store.used_bytes()
        # It can be opened, and room can be made.
        async with opened_redis(server.url()) as store:
            await store.delete(2)
            assert await store.used_bytes() < used
            assert await store.session("session-2") is None
            assert await store.search("ballast", limit=9) == []
            await store.expire(max_bytes=await store.used_bytes() // 2)
            kept = await sequences(store)
            assert 0 < len(kept) < count
            await store.commit(batch(count + 1, size=20_000))
            assert await sequences(store) == [*kept, count + 1]


async def test_commit_whose_answer_is_lost_is_stored_once(redis_url: str) -> None:
    async with behind_proxy(redis_url) as (store, proxy):
        await store.commit(batch(1))
        for number, passed in ((2, True), (3, False), (4, True)):
            proxy.trap(b"EVALSHA", passed=passed)
            with anyio.fail_after(30):
                await store.commit(batch(number))
            assert proxy.sprung.is_set()
            await check_whole(store, number)
        proxy.trap(b"EVALSHA", passed=True)
        assert await store.next_key() > 1
        proxy.trap(b"EVALSHA", passed=True)
        await store.delete(1)
        assert await sequences(store) == []


async def test_commit_is_refused_while_redis_is_away_and_accepted_when_it_is_back(redis_url: str) -> None:
    async with behind_proxy(redis_url) as (store, proxy):
        await store.commit(batch(1))
        proxy.refuse()
        with pytest.raises(PersistError, match="can't be reached"):
            await store.commit(batch(2))
        with pytest.raises(PersistError, match="can't be reached"):
            await store.session("session-1")
        proxy.accept()
        await store.commit(batch(2))
        await check_whole(store, 2)


async def test_commit_ends_when_redis_does_not_answer_and_can_be_tried_again(redis_url: str) -> None:
    async with behind_proxy(redis_url, timeout=0.5) as (store, proxy):
        await store.commit(batch(1))
        proxy.stall()
        with anyio.fail_after(10):
            for _ in range(2):
                with pytest.raises(PersistError, match="did not answer within"):
                    await store.commit(batch(2))
        proxy.resume()
        await store.commit(batch(2))
        await store.commit(batch(3))
        await check_whole(store, 3)


async def test_store_goes_on_when_a_commit_was_cancelled(redis_url: str) -> None:
    async with behind_proxy(redis_url) as (store, proxy):
        await store.commit(batch(1))
        proxy.stall()
        with anyio.move_on_after(0.05) as scope:
            await store.commit(batch(2))
        assert scope.cancelled_caught
        proxy.resume()
        await store.commit(batch(2))
        await check_whole(store, 2)


async def test_commit_that_the_network_brings_late_changes_nothing(redis_url: str) -> None:
    async with opened_redis(redis_url) as store:
        await store.commit(Changes(sessions=[session()], turns=[turn(1, state="running")]))
        owner, number = call(redis_url, "HMGET", f"{BASE}fence", "gen", "n")
        await store.commit(Changes(turns=[turn(1, state="done")]))
        empty = msgspec.msgpack.encode([[], [["e", 1, [1], [1]]], [], [], [], []])

        def send(number: int) -> Any:
            return call(redis_url, "EVAL", COMMIT.source, 1, BASE, owner, number, empty, b"x")

        assert send(int(number)) == [b"late"]
        assert send(int(number) + 1) == [b"done"]
        assert await sequences(store) == []
        (row,) = await store.turns(1, limit=9)
        assert row.state == "done"


async def test_delete_that_is_interrupted_is_finished_at_the_next_open(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.persist.redis.erase.SLICE_TEXTS", 10)
    async with opened_redis(redis_url) as store:
        await store.commit(Changes(sessions=[session(2)]))
        for start in range(1, 3_000, 500):
            numbers = range(start, start + 500)
            texts = [TextRow(1, number, TIME, f"word w{number} v{number}") for number in numbers]
            await store.commit(Changes(sessions=[session()], texts=texts))
        async with anyio.create_task_group() as group:
            group.start_soon(store.delete, 1)
            with anyio.fail_after(30):
                while len(await ask(redis_url, "HKEYS", f"{BASE}d:0")) == 512:
                    pass
            group.cancel_scope.cancel()
        assert await store.session("session-1") is None
        assert call(redis_url, "SCARD", f"{BASE}deleted") == 1
        assert call(redis_url, "ZCARD", f"{BASE}ts:1") > 0
        assert await store.search("word", limit=9) == []
    async with opened_redis(redis_url):
        assert call(redis_url, "SCARD", f"{BASE}deleted") == 0
        assert [key for key in call(redis_url, "KEYS", "*") if b":d:" in key or b"s:1" in key] == []


async def test_pages_are_whole_however_large_they_are(redis_url: str) -> None:
    async with opened_redis(redis_url) as store:
        rows = [event(number, envelope=number, size=number % 7 * 1_000) for number in range(1, 6_001)]
        large = EventRow(1, 6_001, TIME, "item.delta", 1, b"[" + b"1" * 5_000_000 + b"]")
        for start in range(0, 6_000, 1_000):
            await store.commit(
                Changes(
                    sessions=[session()],
                    events=rows[start : start + 1_000],
                    envelopes=[envelope(row.sequence, data=b"[1]") for row in rows[start : start + 1_000]],
                )
            )
        await store.commit(Changes(events=[large]))
        rows.append(large)
        assert await store.events(1, after=0, limit=PLENTY, max_bytes=PLENTY) == rows
        assert await sequences(store, after=5_990) == list(range(5_991, 6_002))
        assert await indexes(store) == list(range(1, 6_001))
        newest = await store.newest_envelopes(1, limit=5_000)
        assert [row.index for row in newest] == list(range(1_001, 6_001))
        raw = await store.events(1, after=0, limit=PLENTY, max_bytes=PLENTY, include_raw=True)
        assert [row.data for row in raw] == [row.data[:-1] + b',"raw":[1]}' for row in rows[:-1]] + [
            large.data[:-1] + b',"raw":[1]}'
        ]
        # As many as fit, whatever it takes to fetch them.
        size = sum(len(row.data) for row in rows[:4_321])
        assert len(await store.events(1, after=0, limit=PLENTY, max_bytes=size)) == 4_321
        assert len(await store.events(1, after=0, limit=PLENTY, max_bytes=size - 1)) == 4_320
        assert await store.events(1, after=6_000, limit=5, max_bytes=1) == [large]
        small = [event(number, 2) for number in range(1, 2_101)]
        await store.commit(Changes(sessions=[session(2)], events=small))
        for count in (2_047, 2_048, 2_049):
            size = sum(len(row.data) for row in small[:count])
            assert len(await store.events(2, after=0, limit=PLENTY, max_bytes=size + 1)) == count


async def test_old_rows_that_come_again_after_an_expiry_stay_erased(redis_url: str) -> None:
    async with opened_redis(redis_url) as store:
        rows = filled(1, 10, managed=True)
        await store.commit(rows)
        await store.expire(before=TIME + 6)
        await store.commit(rows)
        assert await sequences(store) == await indexes(store) == [6, 7, 8, 9, 10]
        row = await store.session("session-1")
        assert row is not None
        assert row.first_sequence == 6


async def test_password_is_never_shown(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="hush-hush") as server:
        async with opened_redis(server.url()) as store:
            await store.commit(batch(1))
            server.kill()
            with pytest.raises(PersistError) as refusal:
                await store.commit(batch(2))
            assert "hush" not in str(refusal.value)
        server.start()
        wrong = RedisSessionStore(server.url().replace("hush", "other"), namespace=NAMESPACE)
        with pytest.raises(PersistError) as refusal:
            await wrong.open()
        await wrong.close()
        assert "other" not in str(refusal.value)
        assert "hush" not in str(refusal.value)


async def test_store_refuses_a_server_that_throws_keys_away(tmp_path: Path) -> None:
    options = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with RedisServer(tmp_path, options=options) as server:
        store = RedisSessionStore(server.url(), namespace=NAMESPACE)
        with pytest.raises(PersistError, match="maxmemory-policy to noeviction"):
            await store.open()
        await store.close()


async def test_store_of_a_newer_version_is_refused_and_left_alone(redis_url: str) -> None:
    call(redis_url, "HSET", f"{BASE}meta", "version", 99)
    store = RedisSessionStore(redis_url, namespace=NAMESPACE)
    with pytest.raises(PersistError, match="schema version 99"):
        await store.open()
    await store.close()
    assert call(redis_url, "KEYS", "*") == [f"{BASE}meta".encode()]


async def test_closed_store_says_so(redis_url: str) -> None:
    store = RedisSessionStore(redis_url, namespace=NAMESPACE)
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(PersistError, match="is closed"):
        await store.commit(batch(1))


@pytest.mark.parametrize(("url", "namespace"), [("http://x", "n"), ("redis://localhost", "")])
def test_store_refuses_what_names_no_place(url: str, namespace: str) -> None:
    with pytest.raises(ValueError, match=r"URL|namespace"):
        RedisSessionStore(url, namespace=namespace)
