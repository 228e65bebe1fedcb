"""Keys: two processes that make one at once, rotation, erasure; with everything that may come between."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import anyio
import msgspec
import pytest

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.encrypted.keys import KEY_PREFIX
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from sandbox_agent.wire.records import ListPage, SessionEvent
from tests.persist.encrypted.conftest import KEY, OTHER_KEY, Interrupted

pytestmark = pytest.mark.anyio

THIRD_KEY = b"3" * 32


class Crash(BaseException):
    """The process is gone."""


def at_call(number: int, action: Callable[[], Awaitable[object]]) -> Callable[[str, str], Awaitable[None]]:
    """Return a hook that does something at the call of that number, counted from 0."""
    counter = itertools.count()

    async def hook(_name: str, _session_id: str) -> None:
        if next(counter) == number:
            await action()

    return hook


def ids(events: list[SessionEvent]) -> list[str]:
    return [event.id for event in events]


async def calls_of(
    store: SessionPersistDriver, work: Callable[[SessionPersistDriver], Awaitable[object]]
) -> int:
    """Return how many calls of the store the work takes."""
    counted = Interrupted(store)
    await work(counted)
    return len(counted.calls)


@pytest.mark.parametrize("point", range(12))
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_two_processes_that_begin_a_session_at_once_lose_nothing(
    store: SessionPersistDriver, point: int, moment: str
) -> None:
    """Between any two calls of the one the other does all of its work."""
    wrapped = Interrupted(store)
    one = EncryptedSessionPersistDriver(wrapped, key=KEY)
    other = EncryptedSessionPersistDriver(store, key=KEY)

    async def intrude() -> None:
        await other.update_session(make_session("s", modes={"by": "other"}))
        await other.append_events("s", [make_event("other")])

    setattr(wrapped, moment, at_call(point, intrude))
    await one.append_events("s", [make_event("one")])
    wrapped.before = wrapped.after = None
    await one.append_events("s", [make_event("two")])
    for driver in (one, other, EncryptedSessionPersistDriver(store, key=KEY)):
        seen = ids(await all_events(driver, "s"))
        assert len(seen) == len(set(seen))
        assert set(seen) >= {"one", "two"}
        if "other" in ids(await all_events(store, "s")):
            assert "other" in seen
            record = await driver.get_session("s")
            assert record is not None
            assert record.modes == {"by": "other"}


async def test_many_drivers_that_begin_a_session_at_once_lose_nothing(store: SessionPersistDriver) -> None:
    drivers = [EncryptedSessionPersistDriver(store, key=KEY) for _ in range(8)]

    async def write(driver: EncryptedSessionPersistDriver, name: str) -> None:
        for number in range(5):
            await driver.append_events("s", [make_event(f"{name}-{number}")])

    async with anyio.create_task_group() as group:
        for number, driver in enumerate(drivers):
            group.start_soon(write, driver, str(number))
    events = await all_events(EncryptedSessionPersistDriver(store, key=KEY), "s")
    assert [event.event_index for event in events] == list(range(1, 41))
    assert set(ids(events)) == {f"{one}-{number}" for one in range(8) for number in range(5)}


async def test_rotation_wraps_each_key_once_and_leaves_what_is_stored(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    for number in range(5):
        await driver.update_session(make_session(f"s{number}", created_at=number, modes={"n": number}))
        await driver.append_events(f"s{number}", [make_event(f"e{number}", f"s{number}")])
    await driver.append_events("alone", [make_event("a", "alone")])
    payloads = [(await all_events(store, f"s{number}"))[0].payload_json for number in range(5)]
    assert await driver.rotate_keys() == 0
    newer = EncryptedSessionPersistDriver(store, key=OTHER_KEY, old_keys=[KEY])
    assert await newer.get_session("s1") == make_session("s1", created_at=1, modes={"n": 1})
    assert await newer.rotate_keys() == 6
    assert await newer.rotate_keys() == 0
    assert payloads == [(await all_events(store, f"s{number}"))[0].payload_json for number in range(5)]
    alone = EncryptedSessionPersistDriver(store, key=OTHER_KEY)
    assert [one.modes for one in await all_sessions(alone)] == [{"n": number} for number in range(5)]
    assert ids(await all_events(alone, "alone")) == ["a"]
    with pytest.raises(PersistError, match="is encrypted with master key"):
        await EncryptedSessionPersistDriver(store, key=KEY).get_session("s1")


async def test_rotation_goes_on_after_a_crash_and_touches_no_row_twice(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    for number in range(6):
        await driver.update_session(make_session(f"s{number}", created_at=number))
    written: list[str] = []
    wrapped = Interrupted(store)

    async def note(name: str, session_id: str) -> None:
        if name in ("update", "save"):
            written.append(session_id)
            if len(written) == 3:
                raise Crash

    wrapped.after = note
    with pytest.raises(Crash):
        await EncryptedSessionPersistDriver(wrapped, key=OTHER_KEY, old_keys=[KEY]).rotate_keys()
    again = EncryptedSessionPersistDriver(wrapped, key=OTHER_KEY, old_keys=[KEY])
    assert await again.rotate_keys() == 3
    assert sorted(written) == [f"{KEY_PREFIX}s{number}" for number in range(6)]
    assert len(await all_sessions(EncryptedSessionPersistDriver(store, key=OTHER_KEY))) == 6


async def test_rotation_sees_to_the_others_when_a_key_is_missing(store: SessionPersistDriver) -> None:
    await EncryptedSessionPersistDriver(store, key=THIRD_KEY).update_session(make_session("a", created_at=1))
    await EncryptedSessionPersistDriver(store, key=KEY).update_session(make_session("b", created_at=2))
    with pytest.raises(PersistError, match="'a' is encrypted with master key"):
        await EncryptedSessionPersistDriver(store, key=OTHER_KEY, old_keys=[KEY]).rotate_keys()
    assert await EncryptedSessionPersistDriver(store, key=OTHER_KEY).get_session("b") is not None


async def test_a_writer_goes_on_while_keys_are_rotated(store: SessionPersistDriver) -> None:
    """Its record is not written over, nor is it refused, whatever comes between."""
    writer = EncryptedSessionPersistDriver(store, key=KEY, old_keys=[OTHER_KEY])
    generation = await writer.claim_session("s")
    await writer.save_session(make_session("s", modes={"n": 0}), generation=generation)
    wrapped = Interrupted(store)
    count = 0

    async def write(_name: str, _session_id: str) -> None:
        nonlocal count
        count += 1
        await writer.save_session(make_session("s", modes={"n": count}), generation=generation)
        await writer.append_events("s", [make_event(f"e{count}")], generation=generation)

    wrapped.before = write
    assert await EncryptedSessionPersistDriver(wrapped, key=OTHER_KEY, old_keys=[KEY]).rotate_keys() == 1
    assert count >= 2
    wrapped.before = None
    reader = EncryptedSessionPersistDriver(store, key=OTHER_KEY)
    assert await reader.get_session("s") == make_session("s", modes={"n": count})
    assert ids(await all_events(reader, "s")) == [f"e{number}" for number in range(1, count + 1)]


async def test_a_rotation_that_an_erasure_overtakes_brings_no_key_back(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    await driver.update_session(make_session("s"))
    for point in range(3):
        await driver.update_session(make_session("s"))
        wrapped = Interrupted(store)
        wrapped.before = at_call(point, lambda: driver.erase("s"))
        await EncryptedSessionPersistDriver(wrapped, key=OTHER_KEY, old_keys=[KEY]).rotate_keys()
        assert await store.get_session(KEY_PREFIX + "s") is None or b"data" not in msgspec.json.encode(
            await store.get_session(KEY_PREFIX + "s")
        )


# Erasure.


async def test_an_erased_session_can_be_read_by_nobody(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    cached = EncryptedSessionPersistDriver(store, key=KEY)
    for session_id in ("s", "t"):
        await driver.update_session(make_session(session_id, modes={"n": 1}))
        await driver.append_events(session_id, [make_event(f"of-{session_id}", session_id)])
    assert len(await all_events(cached, "s")) == 1
    copied = (await all_events(store, "s"))[0].payload_json
    await driver.erase("s")
    await driver.erase("s")
    await driver.erase("nobody")
    for reader in (driver, cached, EncryptedSessionPersistDriver(store, key=KEY)):
        assert await reader.get_session("s") is None
        assert await reader.list_events("s") == ListPage([], None)
        assert await reader.tail_events("s", limit=5) == []
        assert await reader.last_event_index("s") == 0
        assert [one.id for one in await all_sessions(reader)] == ["t"]
        assert ids(await all_events(reader, "t")) == ["of-t"]
    # The key is not in the store; where it can't delete, nothing but the note that it is gone.
    key = await store.get_session(KEY_PREFIX + "s")
    assert (key is None) == (Capability.DELETE in store.capabilities)
    assert key is None or (key.session_init or {}).keys() == {"gone"} | (key.session_init or {}).keys() - {
        "key"
    }
    assert b'"k"' in copied


async def test_a_session_that_was_erased_can_be_made_anew(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    await driver.update_session(make_session("s", modes={"n": 1}))
    await driver.append_events("s", [make_event("old")])
    await driver.erase("s")
    await driver.append_events("s", [make_event("new")])
    assert await driver.get_session("s") is None
    await driver.update_session(make_session("s", modes={"n": 2}))
    for reader in (driver, EncryptedSessionPersistDriver(store, key=KEY)):
        assert await reader.get_session("s") == make_session("s", modes={"n": 2})
        assert ids(await all_events(reader, "s")) == ["new"]
        assert ids(await reader.tail_events("s", limit=5)) == ["new"]


async def test_delete_erases_where_the_store_can_delete(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    await driver.update_session(make_session("s"))
    if Capability.DELETE in store.capabilities:
        await driver.delete_session("s")
        assert await all_sessions(store) == []
    else:
        with pytest.raises(NotImplementedError, match=r"erase\(\) destroys the key"):
            await driver.delete_session("s")
        assert await driver.get_session("s") is not None


async def test_an_erasure_that_crashed_has_hidden_the_session_and_ends_when_it_is_called_again(
    store: SessionPersistDriver,
) -> None:
    async def fill(session_id: str) -> None:
        driver = EncryptedSessionPersistDriver(store, key=KEY)
        await driver.update_session(make_session(session_id))
        await driver.append_events(session_id, [make_event(f"of-{session_id}", session_id)])

    async def crash() -> None:
        raise Crash

    await fill("probe")
    count = await calls_of(store, lambda inner: EncryptedSessionPersistDriver(inner, key=KEY).erase("probe"))
    assert count >= 3
    for point in range(count):
        session_id = f"s{point}"
        await fill(session_id)
        wrapped = Interrupted(store)
        wrapped.before = at_call(point, crash)
        with pytest.raises(Crash):
            await EncryptedSessionPersistDriver(wrapped, key=KEY).erase(session_id)
        fresh = EncryptedSessionPersistDriver(store, key=KEY)
        listed = session_id in [one.id for one in await all_sessions(fresh)]
        # All or nothing for readers; events and record may part only while nothing can be read.
        assert listed == (await fresh.get_session(session_id) is not None)
        assert not listed or ids(await all_events(fresh, session_id)) == [f"of-{session_id}"]
        await fresh.erase(session_id)
        assert await fresh.get_session(session_id) is None
        assert await all_events(fresh, session_id) == []
        await fill(session_id) if Capability.DELETE in store.capabilities else None


@pytest.mark.parametrize("point", range(8))
async def test_what_is_written_while_the_session_is_erased_can_be_read_or_is_refused(
    store: SessionPersistDriver, point: int
) -> None:
    """Acknowledged without a claim, it lives in a session that begins anew; the old history stays gone."""
    eraser = EncryptedSessionPersistDriver(store, key=KEY)
    wrapped = Interrupted(store)
    writer = EncryptedSessionPersistDriver(wrapped, key=KEY)
    await writer.update_session(make_session("s"))
    await writer.append_events("s", [make_event("old")])
    wrapped.after = at_call(point, lambda: eraser.erase("s"))
    await writer.append_events("s", [make_event("new")])
    erased = len(wrapped.calls) > 0 and await eraser.get_session("s") is None
    wrapped.after = None
    for reader in (writer, EncryptedSessionPersistDriver(store, key=KEY)):
        seen = ids(await all_events(reader, "s"))
        assert ("old" not in seen) == erased
        assert "new" in seen or erased
    await writer.append_events("s", [make_event("newer")])
    assert ids(await all_events(EncryptedSessionPersistDriver(store, key=KEY), "s"))[-1] == "newer"


@pytest.mark.parametrize("point", range(12))
async def test_a_session_that_is_created_again_during_an_erasure_can_be_used(
    store: SessionPersistDriver, point: int
) -> None:
    eraser_store = Interrupted(store)
    eraser = EncryptedSessionPersistDriver(eraser_store, key=KEY)
    writer = EncryptedSessionPersistDriver(store, key=KEY)
    await writer.update_session(make_session("s"))
    await writer.append_events("s", [make_event("old")])

    async def create() -> None:
        await writer.update_session(make_session("s", modes={"n": 2}))
        await writer.append_events("s", [make_event("new")])

    eraser_store.before = at_call(point, create)
    await eraser.erase("s")
    for driver in (writer, EncryptedSessionPersistDriver(store, key=KEY)):
        await driver.append_events("s", [make_event(f"by-{id(driver)}")])
        assert ids(await all_events(driver, "s"))[-1] == f"by-{id(driver)}"
        assert (await driver.verify_chain("s"))[0] == []


@pytest.mark.parametrize("point", range(12))
async def test_a_session_that_another_erasure_frees_is_never_half_erased(
    store: SessionPersistDriver, point: int
) -> None:
    """While one erasure is interrupted, another one ends, and the session is created again."""
    eraser_store = Interrupted(store)
    eraser = EncryptedSessionPersistDriver(eraser_store, key=KEY)
    writer = EncryptedSessionPersistDriver(store, key=KEY)
    await writer.update_session(make_session("s"))
    await writer.append_events("s", [make_event("old")])

    async def erase_and_create() -> None:
        await EncryptedSessionPersistDriver(store, key=KEY).erase("s")
        await writer.update_session(make_session("s"))
        await writer.append_events("s", [make_event("new-1"), make_event("new-2")])

    async def read(name: str, session_id: str) -> None:
        reader = EncryptedSessionPersistDriver(store, key=KEY)
        assert ids(await all_events(reader, "s")) in ([], ["old"], ["new-1", "new-2"])
        assert (await reader.verify_chain("s"))[0] == []

    eraser_store.before = at_call(point, erase_and_create)
    eraser_store.after = read
    await eraser.erase("s")
    await writer.append_events("s", [make_event("newer")])
    assert ids(await all_events(EncryptedSessionPersistDriver(store, key=KEY), "s"))[-1] == "newer"


@pytest.mark.parametrize("point", range(2))
async def test_a_session_that_is_erased_and_created_while_it_is_read(
    store: SessionPersistDriver, point: int
) -> None:
    writer = EncryptedSessionPersistDriver(store, key=KEY)
    await writer.append_events("s", [make_event("old")])

    async def create_again() -> None:
        await writer.erase("s")
        await writer.append_events("s", [make_event("new")])

    read_from = Interrupted(store)  # the key is read after the events
    read_from.before = at_call(point, create_again)
    found = ids((await EncryptedSessionPersistDriver(read_from, key=KEY).list_events("s")).items)
    assert found == (["new"] if point == 0 else ["old"])


async def test_a_writer_that_knows_the_key_of_an_erased_session_begins_another(
    store: SessionPersistDriver,
) -> None:
    writer = EncryptedSessionPersistDriver(store, key=KEY)
    await writer.append_events("s", [make_event("old")])
    (old,) = await all_events(writer, "s")
    await writer.insert_event("s", old)  # the writer reads next where the session ends
    await EncryptedSessionPersistDriver(store, key=KEY).erase("s")
    await writer.append_events("s", [make_event("new")])
    for reader in (writer, EncryptedSessionPersistDriver(store, key=KEY)):
        assert ids(await all_events(reader, "s")) == ["new"]


async def test_the_writer_of_an_erased_session_is_refused(store: SessionPersistDriver) -> None:
    writer = EncryptedSessionPersistDriver(store, key=KEY)
    generation = await writer.claim_session("s")
    await writer.append_events("s", [make_event("a")], generation=generation)
    await EncryptedSessionPersistDriver(store, key=KEY).erase("s")
    with pytest.raises(SessionFencedError):
        await writer.append_events("s", [make_event("b")], generation=generation)
    with pytest.raises(SessionFencedError):
        await writer.save_session(make_session("s"), generation=generation)
    assert await all_events(EncryptedSessionPersistDriver(store, key=KEY), "s") == []


async def test_followers_end_with_the_driver_that_they_follow(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    await driver.append_events("s", [make_event("a")])
    seen: list[str] = []
    reached = anyio.Event()

    async def follow() -> None:
        async for event in driver.follow_events("s"):
            seen.append(event.id)
            reached.set()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await reached.wait()
            await driver.close()
    assert seen == ["a"]
