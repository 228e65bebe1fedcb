"""The store of PostgreSQL keeps to the suite of all stores."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres import owner
from sandbox_agent.persist.postgres.link import PostgresLink
from sandbox_agent.persist.postgres.owner import Owner
from sandbox_agent.persist.postgres.store import PostgresSessionStore
from sandbox_agent.persist.store import Changes, SessionStore
from tests.persist.store.machine import StoreMachine
from tests.persist.store.making import TIME, filled, permission, sequences, session, turn
from tests.persist.store.suite import MeasuredStore, Opener, SessionStoreSuite
from tests.support.effort import repeats
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(dsn: str, namespace: str = "mine") -> AsyncGenerator[PostgresSessionStore]:
    store = PostgresSessionStore(dsn, namespace=namespace)
    try:
        await store.open()
        await store.finish_deletes()
        yield store
    finally:
        await store.close()


class TestPostgresStore(SessionStoreSuite):
    @pytest.fixture
    def opener(self, postgres_dsn: str) -> Opener:
        def open_it() -> AbstractAsyncContextManager[MeasuredStore]:
            return opened(postgres_dsn)

        return open_it


class PostgresMachine(StoreMachine):
    server: PostgresServer

    def __init__(self) -> None:
        self.dsn = self.server.create_database()
        super().__init__()

    def place(self) -> AbstractAsyncContextManager[SessionStore]:
        return opened(self.dsn)

    def teardown(self) -> None:
        super().teardown()
        self.server.drop_database(self.dsn)


@pytest.mark.loops
def test_store_does_what_a_plain_model_does(postgres: PostgresServer) -> None:
    PostgresMachine.server = postgres
    run_state_machine_as_test(
        PostgresMachine, settings=settings(max_examples=repeats(4, 12), stateful_step_count=25, deadline=None)
    )


async def test_namespaces_of_one_database_see_nothing_of_each_other(postgres_dsn: str) -> None:
    async with opened(postgres_dsn, "one") as one, opened(postgres_dsn, "two \0 'quoted'") as two:
        await one.commit(filled(1, 5, text="alpha", native_session_id="n"))
        await two.commit(filled(1, 3, text="beta"))
        assert await sequences(one) == [1, 2, 3, 4, 5]
        assert await sequences(two) == [1, 2, 3]
        assert await two.native_session("claude", "n") is None
        assert await two.search("alpha", limit=9) == []
        assert len(await two.search("beta", limit=9)) == 3
        await two.delete(1)
        assert await two.expire(max_bytes=0) == []
        assert await sequences(one) == [1, 2, 3, 4, 5]
        assert [await one.next_key(), await two.next_key()] == [2, 1]
        assert await two.used_bytes() == 0


async def test_second_store_of_a_namespace_is_refused(postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as store:
        with pytest.raises(PersistError, match=r"'mine'.*belongs to another running server \(process \d+"):
            async with opened(postgres_dsn):
                pass
        await store.commit(filled(1, 3))
    async with opened(postgres_dsn) as store:
        assert await sequences(store) == [1, 2, 3]


async def test_store_that_was_replaced_while_it_was_away_writes_nothing_more(
    postgres: PostgresServer, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres_dsn) as store:
        await store.commit(filled(1, 3))
        # Its connections end, and it doesn't come back in time.
        gate = anyio.Event()

        async def late(_: Owner) -> None:
            await gate.wait()

        monkeypatch.setattr(Owner, "_lock_again", late)
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            dsn=postgres_dsn,
        )
        async with opened(postgres_dsn) as newer:
            with pytest.raises(PersistError, match="taken over by another server"):
                await store.commit(filled(1, 4))
            for call in (store.next_key, lambda: store.delete(1), lambda: store.expire(before=TIME + 99)):
                with pytest.raises(PersistError, match="taken over by another server"):
                    await call()
            assert store.trouble is not None
            assert await sequences(newer) == [1, 2, 3]
            await newer.commit(filled(1, 5))
            assert await sequences(newer) == [1, 2, 3, 4, 5]


async def test_store_whose_connections_are_cut_goes_on_and_keeps_its_namespace(
    postgres: PostgresServer, postgres_dsn: str
) -> None:
    async with opened(postgres_dsn) as store:
        await store.commit(filled(1, 3))
        for count in (4, 5):
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()",
                dsn=postgres_dsn,
            )
            await store.commit(filled(1, count))
            assert len(await sequences(store)) == count
            with anyio.fail_after(20):
                while store.trouble is not None:
                    await sequences(store)
        with pytest.raises(PersistError, match="belongs to another"):
            async with opened(postgres_dsn):
                pass


async def test_store_keeps_its_namespace_by_a_lease_behind_a_pool(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_direct(_: PostgresLink) -> bool:
        return False

    # As if the process ids differed, which is how a pool is told.
    monkeypatch.setattr(PostgresLink, "_is_direct", is_direct)
    monkeypatch.setattr(owner, "_LEASE_SECONDS", 2)
    monkeypatch.setattr(owner, "_RENEW_SECONDS", 0.3)
    async with opened(postgres_dsn) as store:
        await store.commit(filled(1, 3))
        with pytest.raises(PersistError, match="belongs to another running server"):
            async with opened(postgres_dsn):
                pass
        await store.commit(filled(1, 4))
        # One that is killed renews nothing: the next has it once the lease has run out.
        monkeypatch.setattr(owner, "_RENEW_SECONDS", 60)
        async with opened(postgres_dsn) as newer:
            await newer.commit(filled(1, 5))
            with pytest.raises(PersistError, match="taken over by another server"):
                await store.commit(filled(1, 6))
            assert await sequences(newer) == [1, 2, 3, 4, 5]


async def test_emptied_database_takes_nothing_and_says_so(
    postgres: PostgresServer, postgres_dsn: str
) -> None:
    async with opened(postgres_dsn) as store:
        await store.commit(filled(1, 3))
        postgres.execute("DELETE FROM store_namespaces", dsn=postgres_dsn)
        with pytest.raises(PersistError, match="has lost the namespace 'mine'"):
            await store.commit(filled(1, 4))
        postgres.execute("DROP TABLE store_namespaces, store_events CASCADE", dsn=postgres_dsn)
        with pytest.raises(PersistError, match="has lost the store's tables"):
            await store.commit(filled(1, 4))


async def test_store_of_a_newer_version_is_refused(postgres: PostgresServer, postgres_dsn: str) -> None:
    async with opened(postgres_dsn):
        pass
    postgres.execute("UPDATE store_meta SET value = value + 1", dsn=postgres_dsn)
    with pytest.raises(PersistError, match="upgrade sandbox-agent-py"):
        async with opened(postgres_dsn):
            pass


async def test_stores_that_begin_at_once_make_the_tables_once(postgres_dsn: str) -> None:
    async def begin(name: str) -> None:
        async with opened(postgres_dsn, name) as store:
            await store.commit(filled(1, 3))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(begin, f"n{number}")


async def test_names_longer_than_an_index_takes_are_kept(postgres_dsn: str) -> None:
    long = "ä" * 20_000
    async with opened(postgres_dsn) as store:
        row = session(1, session_id=long, native_session_id=long, title=long)
        one, ask = turn(1, turn_id=long, idempotency_key=long), permission(long)
        await store.commit(Changes(sessions=[row], turns=[one], permissions=[ask]))
        assert await store.session(long) == await store.native_session("claude", long) == row
        assert await store.turn(1, turn_id=long) == await store.turn(1, idempotency_key=long) == one
        assert await store.permission(1, long) == ask
