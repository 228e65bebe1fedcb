"""Sessions go from store to store whole, once, and on after anything that came between."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import anyio
import pytest

from sandbox_agent.errors import InvalidRequestError, PersistError, SessionNotFoundError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.persist.transfer.lines import event_line, export_lines, import_lines
from sandbox_agent.persist.transfer.sessions import copy_sessions, list_all_sessions, measure
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.records import SessionEvent
from tests.persist.encrypted.conftest import Interrupted
from tests.persist.test_conformance import FiveMethodDriver

pytestmark = pytest.mark.anyio

NASTY = (
    b'{"jsonrpc":"2.0","a":"\\u0000 \\ud800 \\"q\\"","b":"\xf0\x9f\xa6\x80 \xe2\x80\xa8",'
    b'"big":123456789012345678901234567890,"sp":  [ 1 , 2 ],"a":"again"}'
)
HOLES = (3, 4, 5, 9, 10, 400)


@pytest.fixture(params=["five methods", "memory", "sqlite", "postgres", "redis", "encrypted"])
async def target(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionPersistDriver]:
    """Stores to go into, empty."""
    kind: str = request.param
    driver: SessionPersistDriver
    if kind == "five methods":
        driver = FiveMethodDriver()
    elif kind == "memory":
        driver = InMemorySessionPersistDriver(max_events_per_session=5_000)
    elif kind == "sqlite":
        driver = SQLiteSessionPersistDriver(tmp_path / "target.db")
    elif kind == "postgres":
        driver = PostgresSessionPersistDriver(request.getfixturevalue("postgres_dsn"))
    elif kind == "redis":
        driver = RedisSessionPersistDriver(request.getfixturevalue("redis_url"))
    else:
        inner = SQLiteSessionPersistDriver(tmp_path / "target.db")
        driver = EncryptedSessionPersistDriver(inner, key=b"k" * 32, close_inner=True)
    yield driver
    await driver.close()


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[SessionPersistDriver]:
    """A store with a long history, one with holes, one without events, and nasty text."""
    driver = SQLiteSessionPersistDriver(tmp_path / "source.db")
    await driver.update_session(
        make_session("long", created_at=3, session_init={"cwd": "/ü\u2028", "big": 2**60}, modes={})
    )
    await driver.append_events("long", [make_event(f"l{number}", "long") for number in range(1_500)])
    await driver.update_session(make_session("holes", created_at=1, destroyed_at=9))
    for index in HOLES:
        await driver.insert_event("holes", make_event(f"h{index}", "holes", index, payload=NASTY))
    await driver.update_session(make_session("empty \U0001f980", created_at=2, config_options=[]))
    yield driver
    await driver.close()


async def content(driver: SessionPersistDriver) -> list[object]:
    """Return everything, the bytes of payloads included."""
    found: list[object] = []
    for record in await all_sessions(driver):
        events = await all_events(driver, record.id, limit=1_000)
        found.append((record, [(*key(event), event.payload_json) for event in events]))
    return found


def key(event: SessionEvent) -> tuple[object, ...]:
    return (
        event.id,
        event.event_index,
        event.session_id,
        event.created_at,
        event.connection_id,
        event.sender,
    )


async def test_a_copy_is_equal_in_everything(
    source: SessionPersistDriver, target: SessionPersistDriver
) -> None:
    expected = await content(source)
    told: list[int] = []
    moved = await copy_sessions(
        source, target, verify=True, on_progress=lambda moved: told.append(moved.indexes)
    )
    assert (moved.sessions, moved.events, moved.stored, moved.deleted) == (3, 1_506, 1_506, 0)
    assert moved.indexes == told[-1] == (await measure(source)).indexes == 1_900
    assert await content(target) == await content(source) == expected
    again = await copy_sessions(source, target)
    assert (again.sessions, again.stored) == (3, 0)
    assert await content(target) == expected


async def test_a_move_empties_the_source(source: SessionPersistDriver, target: SessionPersistDriver) -> None:
    expected = await content(source)
    if isinstance(target, FiveMethodDriver):
        with pytest.raises(InvalidRequestError, match="target store can't delete sessions: keep them"):
            await copy_sessions(source, target, delete=True)
        assert await content(source) == expected
        return
    moved = await copy_sessions(source, target, delete=True, verify=True)
    assert (moved.sessions, moved.deleted) == (3, 3)
    assert await content(target) == expected
    assert await content(source) == []
    assert await source.list_events("long") == await source.list_events("nobody")


async def test_a_source_of_five_methods_is_copied(source: SessionPersistDriver) -> None:
    middle = FiveMethodDriver()
    await copy_sessions(source, middle)
    target = InMemorySessionPersistDriver(max_events_per_session=5_000)
    await copy_sessions(middle, target, verify=True)
    assert await content(target) == await content(source)


async def test_only_the_sessions_that_are_named_are_moved(source: SessionPersistDriver) -> None:
    target = InMemorySessionPersistDriver()
    moved = await copy_sessions(source, target, session_ids=["holes"], delete=True)
    assert (moved.sessions, moved.deleted) == (1, 1)
    assert [one.id for one in await all_sessions(target)] == ["holes"]
    assert [one.id for one in await all_sessions(source)] == ["empty \U0001f980", "long"]
    with pytest.raises(SessionNotFoundError, match="nobody"):
        await copy_sessions(source, target, session_ids=["nobody"])


class FaultError(Exception):
    """The target fails."""


@pytest.mark.parametrize("delete", [False, True])
async def test_a_run_that_failed_anywhere_goes_on_and_ends_equal(
    source: SessionPersistDriver, tmp_path: Path, delete: bool
) -> None:
    expected = await content(source)
    inner = SQLiteSessionPersistDriver(tmp_path / "target.db")
    target = Interrupted(inner)
    left = 0

    async def fail(_name: str, _session_id: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise FaultError

    target.before, failures = fail, 0
    for calls in range(1, 40):
        left = calls
        try:
            await copy_sessions(source, target, delete=delete)
            break
        except FaultError:
            failures += 1
    assert failures >= 5
    assert await content(inner) == expected
    assert await content(source) == ([] if delete else expected)
    await inner.close()


async def test_runs_at_once_store_nothing_twice(source: SessionPersistDriver, tmp_path: Path) -> None:
    expected = await content(source)
    targets = [SQLiteSessionPersistDriver(tmp_path / "target.db") for _ in range(4)]
    async with anyio.create_task_group() as group:
        for target in targets:
            group.start_soon(copy_sessions, source, target)
    assert await content(targets[0]) == expected
    for target in targets:
        await target.close()


async def test_what_was_added_meanwhile_is_moved_too_and_its_writer_is_refused_then(
    source: SessionPersistDriver, tmp_path: Path
) -> None:
    target = Interrupted(SQLiteSessionPersistDriver(tmp_path / "target.db"))
    writer = await source.claim_session("holes")
    added = 0

    async def add(name: str, session_id: str) -> None:
        nonlocal added
        if session_id == "holes" and name in ("update", "insert") and added < 3:
            added += 1
            await source.append_events("holes", [make_event(f"new{added}", "holes")], generation=writer)

    target.before = add
    await copy_sessions(source, target, delete=True)
    ids = [event.id for event in await all_events(target, "holes")]
    assert ids == [*(f"h{index}" for index in HOLES), "new1", "new2", "new3"]
    with pytest.raises(PersistError):
        await source.append_events("holes", [make_event("late", "holes")], generation=writer)
    await target.inner.close()


async def test_another_history_of_that_id_is_not_written_into(source: SessionPersistDriver) -> None:
    for foreign in (make_event("x", "holes", 3), make_event("x", "holes", 401), make_event("x", "holes", 6)):
        target = InMemorySessionPersistDriver()
        await target.insert_event("holes", foreign)
        with pytest.raises(PersistError, match="'holes' is in both stores with different histories"):
            await copy_sessions(source, target, session_ids=["holes"], delete=True)
        assert await all_events(target, "holes") == [foreign]
        assert await target.get_session("holes") is None
        assert len(await all_events(source, "holes")) == len(HOLES)


async def test_a_target_that_has_gone_on_keeps_what_it_has(source: SessionPersistDriver) -> None:
    target = InMemorySessionPersistDriver()
    await copy_sessions(source, target, session_ids=["holes"])
    newer = make_session("holes", created_at=1, agent="codex")
    await target.update_session(newer)
    await target.append_events("holes", [make_event("on", "holes")])
    moved = await copy_sessions(source, target, session_ids=["holes"], delete=True, verify=True)
    assert moved.deleted == 1
    assert await target.get_session("holes") == newer
    assert len(await all_events(target, "holes")) == len(HOLES) + 1


async def test_a_store_is_never_moved_into_itself(tmp_path: Path, source: SessionPersistDriver) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "source.db")
    expected = await content(source)
    same = SQLiteSessionPersistDriver(link)
    for target in (source, same, EncryptedSessionPersistDriver(same, key=b"k" * 32)):
        with pytest.raises(InvalidRequestError, match="are the same store"):
            await copy_sessions(source, target, delete=True)
    assert await content(source) == expected
    await same.close()


async def test_a_difference_is_found_when_every_byte_is_compared(source: SessionPersistDriver) -> None:
    target = InMemorySessionPersistDriver()
    await copy_sessions(source, target, session_ids=["holes"])
    await target.insert_event("holes", make_event("h4", "holes", 4))
    await copy_sessions(source, target, session_ids=["holes"])
    with pytest.raises(PersistError, match="not the same in both stores: event 4 \\('h4'\\)"):
        await copy_sessions(source, target, session_ids=["holes"], delete=True, verify=True)
    assert len(await all_events(source, "holes")) == len(HOLES)


@pytest.mark.soak
async def test_memory_is_bounded_by_bytes_whatever_an_event_weighs(tmp_path: Path) -> None:
    source = SQLiteSessionPersistDriver(tmp_path / "source.db")
    await source.update_session(make_session("s"))
    payload = b'{"a":"%s"}' % (b"x" * 1_000_000)
    for number in range(30):
        await source.append_events(
            "s", [make_event(f"{number}-{part}", payload=payload) for part in range(20)]
        )
    limits: list[int | None] = []

    class Watched(Interrupted):
        async def list_events(
            self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
        ):
            limits.append(limit)
            return await super().list_events(session_id, limit=limit, cursor=cursor)

    target = InMemorySessionPersistDriver(max_events_per_session=1_000)
    await copy_sessions(Watched(source), target)
    assert len(await target.tail_events("s", limit=1_000)) == 600
    assert set(limits[1:]) == {4}
    await source.close()


# Lines.


async def lines_of(driver: SessionPersistDriver) -> list[bytes]:
    return [line + b"\n" async for line in export_lines(driver, list_all_sessions(driver))]


async def test_an_export_imports_into_any_store_equal(
    source: SessionPersistDriver, target: SessionPersistDriver
) -> None:
    lines = await lines_of(source)
    done = await import_lines(target, [codecs.BOM_UTF8 + lines[0], *lines[1:]])  # as Windows programs save it
    assert (done.sessions, done.events, done.stored, done.complete) == (3, 1_506, 1_506, True)
    assert await content(target) == await content(source)
    done = await import_lines(target, lines)
    assert (done.events, done.stored) == (1_506, 0)
    assert await content(target) == await content(source)
    assert await lines_of(target) == lines


async def test_events_alone_become_a_session(source: SessionPersistDriver) -> None:
    events = await all_events(source, "long")
    payload = b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"agents-own"}}'
    events[1].payload_json = payload
    target = SQLiteSessionPersistDriver()
    done = await import_lines(target, [event_line(event) + b"\n" for event in events], agent="claude")
    assert (done.sessions, done.stored, done.complete) == (1, 1_500, None)
    record = await target.get_session("long")
    assert record is not None
    assert (record.agent, record.agent_session_id, record.created_at) == (
        "claude",
        "agents-own",
        events[0].created_at,
    )
    assert record.last_connection_id == "connection-1"
    await target.close()


async def test_lines_of_the_typescript_sdk_are_read() -> None:
    """Members in its order, others that we don't know, and blank lines."""
    target = InMemorySessionPersistDriver()
    record = b'{"id":"s","agent":"claude","agentSessionId":"a","lastConnectionId":"c","createdAt":5,"x":1}\n'
    event = (
        b'{"id":"e1","sessionId":"s","eventIndex":1,"createdAt":6,"connectionId":"c","sender":"client",'
        b'"payload":{"jsonrpc":"2.0","method":"m"},"extra":[]}\r\n'
    )
    lines = [record, b"\n", event]
    assert (await import_lines(target, lines)).stored == 1
    stored = await target.get_session("s")
    assert stored is not None
    assert stored.agent_session_id == "a"
    assert (await all_events(target, "s"))[0].payload_json == b'{"jsonrpc":"2.0","method":"m"}'


async def test_lines_of_several_sessions_may_be_mixed() -> None:
    target = InMemorySessionPersistDriver()
    names = [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("b", 3), ("a", 3)]
    lines = [event_line(make_event(f"{name}{index}", name, index)) for name, index in names]
    for stored in (6, 0):
        done = await import_lines(target, lines)
        assert (done.sessions, done.events, done.stored) == (2, 6, stored)
    for name in "ab":
        assert [event.id for event in await all_events(target, name)] == [
            f"{name}{index}" for index in (1, 2, 3)
        ]


def damaged() -> Iterator[tuple[bytes, str]]:
    event = event_line(make_event("x", "holes", 7))
    yield event[:-5], "not a line of an export"
    yield b"\xff\xfe", "not a line of an export"
    yield b"[1]", "not a line of an export"
    yield b'{"a":1}', "neither an event nor a record"
    yield event.replace(b'"sender":"agent",', b""), "lacks one of id"
    yield event.replace(b'"agent"', b'"somebody"'), "not a line of an export"
    yield event.replace(b'"eventIndex":7', b'"eventIndex":"7"'), "not a line of an export"
    yield b'{"record":{"id":"s"}}', "its record can't be read"
    yield event_line(make_event("x", "holes", 3)), "event 3 comes after event 5"


@pytest.mark.parametrize(("line", "message"), list(damaged()))
async def test_a_damaged_line_is_named_and_what_is_before_it_stays(
    source: SessionPersistDriver, line: bytes, message: str
) -> None:
    lines = await lines_of(source)
    target = SQLiteSessionPersistDriver()
    with pytest.raises(InvalidRequestError, match=f"line 5 can't be imported, .*{message}.*3 events") as info:
        await import_lines(target, [*lines[:4], line + b"\n", *lines[4:]])
    assert "\n" not in str(info.value)
    assert [event.event_index for event in await all_events(target, "holes")] == [3, 4, 5]
    assert await target.get_session("holes") is not None
    await import_lines(target, lines)
    assert await content(target) == await content(source)
    await target.close()


async def test_an_export_that_was_cut_off_is_noticed(source: SessionPersistDriver) -> None:
    lines = await lines_of(source)
    assert (await import_lines(InMemorySessionPersistDriver(), lines[:-1])).complete is False
    twice = await import_lines(SQLiteSessionPersistDriver(), [*lines, *lines])
    assert (twice.complete, twice.sessions) == (True, 3)


async def test_a_history_that_differs_is_named_with_its_line(source: SessionPersistDriver) -> None:
    target = InMemorySessionPersistDriver()
    await target.append_events("holes", [make_event("other", "holes")])
    with pytest.raises(PersistError, match="'holes' is in both stores with different histories"):
        await import_lines(target, await lines_of(source))
    assert [event.id for event in await all_events(target, "holes")] == ["other"]


def lines_of_small_sessions(count: int) -> list[bytes]:
    """Return three lines for each: a record and two events."""
    lines: list[bytes] = []
    for number in range(count):
        name = f"small-{number:04}"
        lines.append(dumps({"record": make_session(name)}) + b"\n")
        lines += [event_line(make_event(f"{name}-{index}", name, index)) + b"\n" for index in (1, 2)]
    return lines


class CountingDriver(InMemorySessionPersistDriver):
    """Counts the appends, of which each waits until others wait with it."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self.appended: list[str] = []
        self._together = together
        self._waiting = 0
        self._enough = anyio.Event()

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = 0
    ) -> None:
        self._waiting += 1
        if self._waiting == self._together:
            self._enough.set()
        await self._enough.wait()
        await super().append_events(session_id, events, generation=generation)
        self.appended.append(session_id)


async def test_small_sessions_are_imported_together_in_bounded_memory() -> None:
    lines = lines_of_small_sessions(600)
    target = CountingDriver(together=100)
    ahead: list[int] = []

    def read() -> Iterator[bytes]:
        for number, line in enumerate(lines):
            ahead.append(number // 3 - len(target.appended))
            yield line

    with anyio.fail_after(30):
        done = await import_lines(target, read())
    assert (done.sessions, done.events, done.stored) == (600, 1_200, 1_200)
    assert max(ahead) <= 128
    assert len(await all_sessions(target)) == 600
    for name in ("small-0000", "small-0599"):
        assert [event.event_index for event in await all_events(target, name)] == [1, 2]


async def test_memory_is_bounded_by_bytes_while_small_sessions_are_imported() -> None:
    target = CountingDriver(together=1)
    payload = b'{"a":"' + b"x" * 1_000_000 + b'"}'
    ahead: list[int] = []

    def read() -> Iterator[bytes]:
        for number in range(20):
            ahead.append(number - len(target.appended))
            yield event_line(make_event(f"e{number}", f"s{number}", 1, payload=payload)) + b"\n"

    assert (await import_lines(target, read())).stored == 20
    assert max(ahead) <= 6


async def test_of_small_sessions_only_one_with_another_history_is_not_imported(tmp_path: Path) -> None:
    lines = lines_of_small_sessions(200)
    target = SQLiteSessionPersistDriver(tmp_path / "target.db")
    for number in (60, 40):
        name = f"small-{number:04}"
        await target.append_events(name, [make_event(f"other-{number}", name)])
    with pytest.raises(PersistError, match=r"^line 121: .*'small-0040' is in both stores") as info:
        await import_lines(target, lines)
    assert info.value.session_id == "small-0040"
    assert [event.id for event in await all_events(target, "small-0040")] == ["other-40"]
    for number in range(40):
        assert len(await all_events(target, f"small-{number:04}")) == 2
    for number in (60, 40):
        await target.delete_session(f"small-{number:04}")
    assert (await import_lines(target, lines)).events == 400
    assert len(await all_sessions(target)) == 200
    await target.close()


async def test_a_damaged_line_after_small_sessions_loses_none_of_them(tmp_path: Path) -> None:
    lines = lines_of_small_sessions(200)
    target = SQLiteSessionPersistDriver(tmp_path / "target.db")
    with pytest.raises(InvalidRequestError, match=r"^line 450 can't be imported, .*; the 299 events in"):
        await import_lines(target, [*lines[:449], b"{", *lines[449:]])
    stored = [len(await all_events(target, f"small-{number:04}")) for number in range(200)]
    assert stored == [2] * 149 + [1] + [0] * 50
    assert (await import_lines(target, lines)).stored == 101
    await target.close()


def test_a_payload_of_several_lines_becomes_one() -> None:
    event = make_event("e", payload=b'{\r\n "a": 1\n}')
    assert event_line(event).count(b"\n") == 0
    assert event_line(event).endswith(b'"payload":{   "a": 1 }}')
