"""Someone who can write the store, but has no key, can't take events away or bring older ones back unseen."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import Capability, NotLastError, SessionPersistDriver
from sandbox_agent.persist.encrypted.chain import HEAD_PREFIX
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.persist.transfer.sessions import copy_sessions
from sandbox_agent.persist.verify import KnownHead, Verified, verify_sessions
from sandbox_agent.testing.drivers import all_events, make_event, make_session
from sandbox_agent.wire.records import SessionEvent
from tests.persist.encrypted.conftest import KEY, OTHER_KEY, Interrupted
from tests.persist.test_custom_driver import make as make_table_driver
from tests.persist.test_migration import place

pytestmark = pytest.mark.anyio

Attack = Callable[[SessionPersistDriver], Awaitable[None]]


def encrypt(store: SessionPersistDriver, *, check_chain: bool = True) -> EncryptedSessionPersistDriver:
    """Return the driver of another process."""
    return EncryptedSessionPersistDriver(store, key=KEY, check_chain=check_chain)


async def fill(store: SessionPersistDriver, session_id: str = "s", count: int = 6) -> None:
    """Store a session in two batches and single events."""
    driver = encrypt(store)
    await driver.update_session(make_session(session_id))
    names = [f"{session_id}-{number}" for number in range(1, count + 1)]
    await driver.append_events(session_id, [make_event(name, session_id) for name in names[:2]])
    for name in names[2:-2]:
        await driver.append_events(session_id, [make_event(name, session_id)])
    await encrypt(store).append_events(session_id, [make_event(name, session_id) for name in names[-2:]])


async def rewrite(store: SessionPersistDriver, session_id: str, events: list[SessionEvent]) -> None:
    """Replace all events of a session by these."""
    if isinstance(store, SQLiteSessionPersistDriver):

        def replace(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM events WHERE session_id = ?", (session_id,))
            connection.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(one.id, one.event_index, one.session_id, one.created_at, one.connection_id),
                        *(one.sender, one.payload_json.decode()),
                    )
                    for one in events
                ],
            )

        await store.writer.run(replace)
        return
    record = await store.get_session(session_id)
    await store.delete_session(session_id)
    if record is not None:
        await store.update_session(record)
    for event in events:
        await store.insert_event(session_id, event)


async def verified(driver: SessionPersistDriver, known: dict[str, KnownHead] | None = None) -> list[Verified]:
    async with aclosing(verify_sessions(driver, (), known)) as results:
        return [one async for one in results]


async def problems(driver: SessionPersistDriver, known: dict[str, KnownHead] | None = None) -> list[str]:
    found = await verified(driver, known)
    return [f"{one.session_id}: {problem}" for one in found for problem in one.problems]


@pytest.fixture(params=["memory", "sqlite"])
async def filled(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionPersistDriver]:
    """A store with a session of six events, and another."""
    sqlite = SQLiteSessionPersistDriver(tmp_path / "store.db")
    store = sqlite if request.param == "sqlite" else InMemorySessionPersistDriver()
    await fill(store)
    await fill(store, "t")
    assert await problems(encrypt(store)) == []
    yield store
    await sqlite.close()


async def delete_one(store: SessionPersistDriver) -> None:
    events = await all_events(store, "s")
    del events[2]
    await rewrite(store, "s", events)


async def delete_first(store: SessionPersistDriver) -> None:
    await rewrite(store, "s", (await all_events(store, "s"))[1:])


async def delete_one_and_close_the_gap(store: SessionPersistDriver) -> None:
    events = await all_events(store, "s")
    del events[2]
    for index, event in enumerate(events, 1):
        event.event_index = index
    await rewrite(store, "s", events)


async def swap_payloads(store: SessionPersistDriver) -> None:
    events = await all_events(store, "s")
    events[2].payload_json, events[3].payload_json = events[3].payload_json, events[2].payload_json
    await rewrite(store, "s", events)


async def swap_with_ids(store: SessionPersistDriver) -> None:
    events = await all_events(store, "s")
    events[2].event_index, events[3].event_index = 4, 3
    await rewrite(store, "s", [*events[:2], events[3], events[2], *events[4:]])


async def cut_tail(store: SessionPersistDriver) -> None:
    await rewrite(store, "s", (await all_events(store, "s"))[:-2])


async def cut_tail_and_head(store: SessionPersistDriver) -> None:
    await cut_tail(store)
    await rewrite(store, HEAD_PREFIX + "s", [])


async def bring_the_head_of_another_session(store: SessionPersistDriver) -> None:
    await cut_tail(store)
    (head,) = await all_events(store, HEAD_PREFIX + "t")
    head.id = head.session_id = HEAD_PREFIX + "s"
    await rewrite(store, HEAD_PREFIX + "s", [head])


async def forge_the_head(store: SessionPersistDriver) -> None:
    await cut_tail(store)
    (head,) = await all_events(store, HEAD_PREFIX + "s")
    head.payload_json = head.payload_json.replace(b'"c":"', b'"c":"AAAA')
    await rewrite(store, HEAD_PREFIX + "s", [head])


ATTACKS: dict[str, tuple[Attack, str, str]] = {
    "one event deleted": (
        delete_one,
        "event 3 is missing before event 4",
        "event 3 is missing before event 4",
    ),
    "an event deleted and the others moved up": (
        delete_one_and_close_the_gap,
        r"event 3 \('s-4'\) of session 's' can't be decrypted",
        r"event 3 \('s-4'\) was changed",
    ),
    "two payloads swapped": (
        swap_payloads,
        r"event 3 \('s-3'\) of session 's' can't be decrypted",
        r"event 3 \('s-3'\) was changed",
    ),
    "two events swapped": (
        swap_with_ids,
        r"event 3 \('s-4'\) of session 's' can't be decrypted",
        r"event 3 \('s-4'\) was changed",
    ),
    "the tail cut": (
        cut_tail,
        "events 5 to 6 are missing at the end",
        "events 5 to 6 are missing at the end",
    ),
    "the tail and the head cut": (
        cut_tail_and_head,
        "the head of its chain is missing",
        "the head of its chain is missing",
    ),
    "the tail cut, with a head of another session": (
        bring_the_head_of_another_session,
        "the head of its chain is missing",
        "the head of its chain is missing",
    ),
    "the tail cut, with a forged head": (
        forge_the_head,
        "the head of session 's' can't be decrypted: it was changed",
        "the head of session 's' can't be decrypted: it was changed",
    ),
}
# What an in-memory store does itself, beyond its limits.
OF_LIMITS = {
    "the tail and the head cut": cut_tail_and_head,
    "the tail cut, with a head of another session": bring_the_head_of_another_session,
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_is_an_error_where_it_is_read_and_in_verify(
    filled: SessionPersistDriver, attack: str
) -> None:
    act, message, finding = ATTACKS[attack]
    await act(filled)
    if attack in OF_LIMITS and filled.drops_oldest:
        assert await problems(encrypt(filled)) == []
        return
    for limit in (1, 2, 100):
        with pytest.raises(PersistError, match=message) as info:
            await all_events(encrypt(filled), "s", limit=limit)
        assert info.value.session_id == "s"
    with pytest.raises(PersistError):
        await encrypt(filled).tail_events("s", limit=6)
    found = await problems(encrypt(filled))
    assert found
    assert all(one.startswith("s: ") for one in found)
    assert re.search(finding, "\n".join(found))
    assert len(await all_events(encrypt(filled), "t")) == 6


@pytest.mark.parametrize("attack", [cut_tail, forge_the_head])
async def test_nothing_is_appended_to_a_session_whose_tail_was_cut(
    filled: SessionPersistDriver, attack: Attack
) -> None:
    writer = encrypt(filled)
    await writer.append_events("s", [make_event("s-7")])
    await attack(filled)
    before = await all_events(filled, "s")
    for driver in (writer, encrypt(filled)):
        with pytest.raises(PersistError, match="session 's'"):
            await driver.append_events("s", [make_event("s-8")])
    assert await all_events(filled, "s") == before


async def test_a_follower_meets_a_hole(filled: SessionPersistDriver) -> None:
    await delete_one(filled)
    seen: list[int] = []
    with anyio.fail_after(30):
        async with aclosing(encrypt(filled).follow_events("s", after=1)) as events:
            seen.append((await anext(events)).event_index)
            with pytest.raises(PersistError, match="event 3 is missing before event 4"):
                await anext(events)
    assert seen == [2]


async def test_the_first_events_are_missed(filled: SessionPersistDriver) -> None:
    """Where the store itself does not drop the oldest."""
    await delete_first(filled)
    if filled.drops_oldest:
        assert [event.event_index for event in await all_events(encrypt(filled), "s")] == [2, 3, 4, 5, 6]
        assert await problems(encrypt(filled)) == []
        return
    with pytest.raises(PersistError, match="event 1 is missing before event 2"):
        await all_events(encrypt(filled), "s")
    assert await problems(encrypt(filled)) == ["s: event 1 is missing before event 2"]


async def test_events_of_an_older_copy_of_a_session_are_an_error(filled: SessionPersistDriver) -> None:
    """Its head is newer."""
    older = await all_events(filled, "s")
    await encrypt(filled).append_events("s", [make_event("s-7")])
    await rewrite(filled, "s", older)
    with pytest.raises(PersistError, match="event 7 is missing at the end"):
        await all_events(encrypt(filled), "s")


async def test_an_older_head_is_found_by_verify(filled: SessionPersistDriver) -> None:
    older = await all_events(filled, HEAD_PREFIX + "s")
    await encrypt(filled).append_events("s", [make_event("s-7")])
    await rewrite(filled, HEAD_PREFIX + "s", older)
    assert await problems(encrypt(filled)) == [
        "s: the head of its chain is older than event 7: it was put back"
    ]


async def test_an_older_copy_of_a_whole_session_shows_against_a_known_head(
    filled: SessionPersistDriver,
) -> None:
    older = await all_events(filled, "s"), await all_events(filled, HEAD_PREFIX + "s")
    writer = encrypt(filled)
    await writer.append_events("s", [make_event("s-7"), make_event("s-8")])
    known = {one.session_id: one.head for one in await verified(encrypt(filled))}
    assert known["s"].last == 8
    await rewrite(filled, "s", older[0])
    await rewrite(filled, HEAD_PREFIX + "s", older[1])
    # By itself it is as it was once.
    assert await problems(encrypt(filled)) == []
    (found,) = await problems(encrypt(filled), known)
    assert found.startswith("s: it ends with event 6, and ended with event 8 before")
    if not filled.drops_oldest:
        # Its writer knows better.
        with pytest.raises(PersistError, match="it was set back from event 8 to event 6"):
            await writer.append_events("s", [make_event("s-9")])
    # Others continue it, and it is still not what it was.
    await encrypt(filled).append_events("s", [make_event("x"), make_event("y"), make_event("z")])
    assert await problems(encrypt(filled), known) == [
        "s: its events up to 8 are not those of before: one was changed, removed or put back"
    ]


async def test_an_older_copy_of_the_file_shows_against_known_heads(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SQLiteSessionPersistDriver(path)
    await fill(store)
    await store.close()
    shutil.copy(path, tmp_path / "older.db")
    store = SQLiteSessionPersistDriver(path)
    await encrypt(store).append_events("s", [make_event("s-7")])
    await fill(store, "t")
    known = {one.session_id: one.head for one in await verified(encrypt(store))}
    assert await problems(encrypt(store), known) == []
    await store.close()
    shutil.copy(tmp_path / "older.db", path)
    store = SQLiteSessionPersistDriver(path)
    assert await problems(encrypt(store)) == []
    found = await problems(encrypt(store), known)
    assert [one[:42] for one in found] == [
        "s: it ends with event 6, and ended with ev",
        "t: it has no events: it was deleted, or th",
    ]
    await store.close()


async def test_an_event_that_was_set_back_to_an_older_copy_is_an_error(filled: SessionPersistDriver) -> None:
    """A session that was continued twice from one copy: both are genuine, and don't fit."""
    older = await all_events(filled, "s"), await all_events(filled, HEAD_PREFIX + "s")
    await encrypt(filled).append_events("s", [make_event("s-7"), make_event("s-8")])
    first = await all_events(filled, "s")
    await rewrite(filled, "s", older[0])
    await rewrite(filled, HEAD_PREFIX + "s", older[1])
    await encrypt(filled).append_events("s", [make_event("s-7"), make_event("s-8")])
    second = await all_events(filled, "s")
    await rewrite(filled, "s", [*first[:7], second[7]])
    with pytest.raises(PersistError, match="event 7 is not the one that event 8 follows: it was put back"):
        await all_events(encrypt(filled), "s")
    await rewrite(filled, "s", [*second[:7], first[7]])
    with pytest.raises(PersistError, match="event 7 is not the one that event 8 follows"):
        await all_events(encrypt(filled), "s")
    await rewrite(filled, "s", first)
    with pytest.raises(PersistError, match="event 8 is not the newest one of that index: it was put back"):
        await all_events(encrypt(filled), "s")


async def test_what_is_left_of_a_damaged_session_can_be_read(filled: SessionPersistDriver) -> None:
    await delete_one(filled)
    left = await all_events(encrypt(filled, check_chain=False), "s")
    assert [event.event_index for event in left] == [1, 2, 4, 5, 6]


# What is no attack.


async def test_the_chain_survives_replaced_and_inserted_events(store: SessionPersistDriver) -> None:
    await fill(store)
    driver = encrypt(store)
    await driver.insert_event("s", make_event("s-3", index=3, payload=b'{"replaced":1}'))
    await driver.insert_event("s", make_event("s-6", index=6, payload=b'{"replaced":1}'))
    await driver.insert_event("s", make_event("far", index=20))
    await driver.append_events("s", [make_event("next")])
    # The middle and the end move away.
    await driver.insert_event("s", make_event("s-4", index=30))
    await driver.append_events("s", [make_event("last")])
    await driver.insert_event("s", make_event("last", index=40))
    await encrypt(store).append_events("s", [make_event("end")])
    expected = ["s-1", "s-2", "s-3", "s-5", "s-6", "far", "next", "s-4", "last", "end"]
    for limit in (1, 3, 100):
        assert [event.id for event in await all_events(encrypt(store), "s", limit=limit)] == expected
    (one,) = await verified(encrypt(store))
    assert one.problems == []
    assert one.notes == ["no chain before event 1, or events were inserted: 3 are in no chain"]


async def test_the_chain_survives_rotation_and_transfers(filled: SessionPersistDriver) -> None:
    rotated = EncryptedSessionPersistDriver(filled, key=OTHER_KEY, old_keys=[KEY])
    assert await rotated.rotate_keys() == 2
    assert await problems(rotated) == []
    target = InMemorySessionPersistDriver()
    await copy_sessions(rotated, encrypt(target), verify=True)
    assert await problems(encrypt(target)) == []
    assert len(await all_events(encrypt(target), "s")) == 6
    # Holes are found in the copy, too.
    await delete_one(target)
    assert await problems(encrypt(target)) == ["s: event 3 is missing before event 4"]


async def test_an_erased_session_begins_another_chain(store: SessionPersistDriver) -> None:
    await fill(store)
    driver = encrypt(store)
    await driver.erase("s")
    assert await problems(driver) == []
    await driver.update_session(make_session("s"))
    await driver.append_events("s", [make_event("new-1"), make_event("new-2")])
    for reader in (driver, encrypt(store)):
        assert [event.id for event in await all_events(reader, "s")] == ["new-1", "new-2"]
        assert await problems(reader) == []
    if Capability.DELETE in store.capabilities:
        await driver.delete_session("s")
        assert await all_events(store, HEAD_PREFIX + "s") == []


async def test_a_store_that_drops_the_oldest_is_no_damage() -> None:
    store = InMemorySessionPersistDriver(max_sessions=4, max_events_per_session=3)
    for name in ("a", "b", "c"):
        await fill(store, name)
        assert [event.event_index for event in await all_events(encrypt(store), name)] == [4, 5, 6]
    driver = encrypt(store)
    assert await problems(driver) == []
    # Dropped, and continued by its writer.
    await driver.append_events("a", [make_event("again", "a")])
    assert [event.id for event in await all_events(driver, "a")] == ["again"]


async def test_a_session_of_an_older_release_is_read_and_continued(tmp_path: Path) -> None:
    store = SQLiteSessionPersistDriver(place("encrypted_without_chain", tmp_path))
    old, other = await verified(encrypt(store))
    assert (old.problems, old.notes) == (
        [],
        ["no chain: 3 events are bound to the session only, or were inserted"],
    )
    assert other.problems == []
    driver = encrypt(store)
    assert (await driver.get_session("old") or make_session("")).modes == {"n": 1}
    assert [event.id for event in await all_events(driver, "old")] == ["old-1", "old-2", "old-3"]
    await driver.append_events("old", [make_event("new-4", "old"), make_event("new-5", "old")])
    for limit in (1, 2, 100):
        events = await all_events(encrypt(store), "old", limit=limit)
        assert [event.event_index for event in events] == [1, 2, 3, 4, 5]
    (old, _) = await verified(encrypt(store))
    assert (old.problems, old.notes) == (
        [],
        ["no chain before event 4, or events were inserted: 3 are in no chain"],
    )
    rows = await all_events(store, "old")
    # From here on an event of the older form is one that was put there.
    rows[1].event_index = 6
    await rewrite(store, "old", [rows[0], *rows[2:], rows[1]])
    for limit in (1, 100):
        with pytest.raises(PersistError, match="event 6 is of an older release and was put"):
            await all_events(encrypt(store), "old", limit=limit)
    await rewrite(store, "old", [rows[0], *rows[2:4]])
    with pytest.raises(PersistError, match="event 5 is missing at the end"):
        await all_events(encrypt(store), "old")
    await store.close()


async def test_a_crash_between_the_events_and_the_head_is_no_damage() -> None:
    """Where the store can't keep both together."""

    class Crash(BaseException):
        pass

    inner = InMemorySessionPersistDriver()
    store = Interrupted(inner)
    vars(store)["appends_head"] = vars(store)["drops_oldest"] = False
    store.append_sealed = partial(SessionPersistDriver.append_sealed, store)  # pyright: ignore[reportAttributeAccessIssue]
    count = 0
    events: list[SessionEvent] = []

    async def crash(name: str, session_id: str) -> None:
        if name == "insert" and session_id.startswith(HEAD_PREFIX):
            nonlocal count
            count += 1
            if count % 2 == 0:
                raise Crash

    for number in range(4):
        store.before = crash
        with suppress(Crash):
            await encrypt(store).append_events("s", [make_event(f"{number}-a"), make_event(f"{number}-b")])
            await encrypt(store).append_events("s", [make_event(f"{number}-c")])
        store.before = None
        events = await all_events(encrypt(store), "s")
        assert [event.event_index for event in events] == list(range(1, len(events) + 1))
        assert await problems(encrypt(store)) == []
    assert count >= 4
    # The retry of an append whose events are stored.
    retried = [make_event("0-a"), make_event("fresh")]
    await encrypt(store).append_events("s", retried)
    assert [event.event_index for event in retried] == [1, len(events) + 1]


async def test_a_driver_of_five_methods_refuses_what_was_sealed_for_another_place() -> None:
    store = make_table_driver({})
    await store.append_events("s", [make_event("a"), make_event("b")])
    head = make_event("head", "head", 1)
    with pytest.raises(NotLastError):
        await store.append_sealed("s", [make_event("c", index=2)], head, after=1)
    with pytest.raises(NotLastError) as info:
        await store.append_sealed("s", [make_event("b", index=3)], head, after=2)
    assert info.value.known == {"b": 2}
    await store.append_sealed("s", [make_event("c", index=3), make_event("d", index=4)], head, after=2)
    assert [event.id for event in await all_events(store, "s")] == ["a", "b", "c", "d"]
    assert await all_events(store, "head") == [head]


async def test_readers_of_a_session_that_is_written_meet_no_damage(store: SessionPersistDriver) -> None:
    await fill(store)
    done = anyio.Event()

    async def write(name: str) -> None:
        driver = encrypt(store)
        for number in range(25):
            await driver.append_events("s", [make_event(f"{name}-{number}-{one}") for one in range(3)])

    async def read() -> None:
        driver = encrypt(store)
        while not done.is_set():
            await all_events(driver, "s", limit=7)
            await driver.tail_events("s", limit=3)
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            async with anyio.create_task_group() as writers:
                for name in ("a", "b", "c"):
                    writers.start_soon(write, name)
            done.set()
    assert await problems(encrypt(store)) == []
    assert len(await all_events(encrypt(store), "s")) == 6 + 3 * 75


async def test_the_head_is_stored_with_the_events_or_not_at_all(tmp_path: Path) -> None:
    """SQLite: in one transaction."""
    store = SQLiteSessionPersistDriver(tmp_path / "store.db")
    await fill(store)
    await store.writer.run(
        lambda connection: (
            connection.execute(
                "CREATE TRIGGER refuse BEFORE UPDATE ON events WHEN NEW.session_id = '~head:s' "
                "BEGIN SELECT RAISE(ABORT, 'no heads today'); END"
            )
            and None
        )
    )
    with pytest.raises(PersistError, match="no heads today"):
        await encrypt(store).append_events("s", [make_event("s-7")])
    await store.close()
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        rows = connection.execute("SELECT max(event_index) FROM events WHERE session_id = 's'").fetchall()
    assert rows == [(6,)]


# Stores that are not encrypted.


async def test_holes_and_older_copies_of_a_plain_session_are_found(tmp_path: Path) -> None:
    store = SQLiteSessionPersistDriver(tmp_path / "store.db")
    await store.update_session(make_session("s"))
    await store.append_events("s", [make_event(f"e{number}") for number in range(1, 7)])
    (one,) = await verified(store)
    assert (one.events, one.problems, one.notes) == (6, [], [])
    known = {"s": one.head}
    await store.append_events("s", [make_event("more")])
    assert await problems(store, known) == []
    events = await all_events(store, "s")
    await rewrite(store, "s", [*events[:2], *events[4:]])
    assert (await problems(store))[0] == "s: events 3 to 4 are missing before event 5"
    await rewrite(store, "s", events[:4])
    assert await problems(store) == []
    assert (await problems(store, known))[0].startswith("s: it ends with event 4, and ended with event 6")
    events[2].payload_json = b'{"changed":true}'
    await rewrite(store, "s", events)
    assert await problems(store) == []
    assert "events up to 6 are not those of before" in (await problems(store, known))[0]
    await store.close()


async def test_appends_of_tasks_wait_their_turn_and_one_that_is_cancelled_leaves_it(
    store: SessionPersistDriver,
) -> None:
    gate, entered = anyio.Event(), anyio.Event()

    async def hold(name: str, session_id: str) -> None:
        if (name, session_id) == ("append", "s"):
            entered.set()
            await gate.wait()

    interrupted = Interrupted(store)
    driver = encrypt(interrupted)
    await driver.append_events("s", [make_event("s-1")])
    interrupted.before = hold
    order: list[int] = []

    async def append(number: int, scope: anyio.CancelScope | None = None) -> None:
        with scope or anyio.CancelScope():
            await driver.append_events("s", [make_event(f"s-{number}")])
            order.append(number)

    first, second = anyio.CancelScope(), anyio.CancelScope()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(append, 2)
            await entered.wait()
            for number, scope in ((3, first), (4, None), (5, second), (6, None)):
                group.start_soon(append, number, scope)
            await anyio.wait_all_tasks_blocked()
            first.cancel()
            await anyio.wait_all_tasks_blocked()
            gate.set()
            # It has its turn next, or has it already.
            second.cancel()
    assert order == [2, 4, 6]
    await driver.append_events("s", [make_event("s-7")])
    names = [event.id for event in await all_events(encrypt(store), "s")]
    assert [name for name in names if name != "s-5"] == ["s-1", "s-2", "s-4", "s-6", "s-7"]
    assert await problems(encrypt(store)) == []


def test_a_sealed_event_is_json_of_known_members() -> None:
    """Readers of other programs: see docs/encryption.md."""
    from sandbox_agent.persist.encrypted.cipher import MasterKeys, bind_linked

    _, cipher = MasterKeys(KEY).make("s")
    bound = bind_linked(("place", 7, b"t" * 16, b"k" * 16))
    text, tag = cipher.seal_linked(b"{}", bound, 7, b"t" * 16, b"k" * 16)
    assert list(msgspec.json.decode(text)) == ["enc", "k", "n", "c", "q", "p", "l"]
    assert len(tag) == 16
    assert list(msgspec.json.decode(cipher.seal_linked(b"{}", bound)[0])) == ["enc", "k", "n", "c"]
