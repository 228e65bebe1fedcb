"""What encryption promises beyond the suite."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest

from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.persist.encrypted.chain import HEAD_PREFIX
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.encrypted.keys import KEY_PREFIX
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.open import KEY_VARIABLE, open_driver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from sandbox_agent.wire.records import SessionEvent, SessionRecord
from tests.persist.encrypted.conftest import KEY, OTHER_KEY
from tests.persist.test_conformance import FiveMethodDriver

pytestmark = pytest.mark.anyio

SECRET = "correct-horse-battery-staple"
SECRETIVE = make_session(
    "s",
    session_init={"cwd": f"/{SECRET}"},
    config_options=[{"id": SECRET}],
    modes={"currentModeId": SECRET},
)


def spoken(event_id: str, session_id: str = "s", index: int = 0) -> SessionEvent:
    return make_event(event_id, session_id, index, payload=b'{"method":"%s"}' % SECRET.encode())


async def test_nothing_that_was_said_is_in_the_files_of_the_store(tmp_path: Path) -> None:
    inner = SQLiteSessionPersistDriver(tmp_path / "store.db")
    driver = EncryptedSessionPersistDriver(inner, key=KEY)
    await driver.update_session(SECRETIVE)
    await driver.append_events("s", [spoken("a"), spoken("b")])
    await driver.insert_event("s", spoken("c", index=9))
    await driver.search_events(SECRET)

    def assert_silent(*, names: set[str]) -> None:
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert names <= files.keys()
        for content in files.values():
            for form in (SECRET, base64.b64encode(SECRET.encode()).decode(), SECRET.encode().hex()):
                assert form.encode() not in content
        # The search does find what is there in the clear.
        assert any(b"agent-s" in content for content in files.values())

    assert_silent(names={"store.db", "store.db-wal"})
    await inner.close()
    assert_silent(names={"store.db"})
    again = SQLiteSessionPersistDriver(tmp_path / "store.db")
    driver = EncryptedSessionPersistDriver(again, key=KEY)
    assert await driver.get_session("s") == SECRETIVE
    assert [event.payload_json for event in await all_events(driver, "s")] == [spoken("x").payload_json] * 3
    await again.close()


async def test_what_the_store_holds_is_json_and_says_who_and_when_only(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    await driver.update_session(SECRETIVE)
    event = spoken("e")
    await driver.append_events("s", [event])
    (stored,) = await all_events(store, "s")
    payload = msgspec.json.decode(stored.payload_json)
    assert payload.keys() == {"enc", "k", "n", "c", "q"}
    assert [stored.id, stored.event_index, stored.created_at, stored.sender, stored.connection_id] == [
        "e",
        1,
        event.created_at,
        "agent",
        "connection-1",
    ]
    record = await store.get_session("s")
    assert record is not None
    assert record.session_init is not None
    assert record.session_init.keys() == {"enc", "k", "n", "c"}
    assert record.config_options is None
    assert record.modes is None
    assert [one.id for one in await all_sessions(store)] == ["s", KEY_PREFIX + "s"]


async def test_search_finds_words_in_what_is_encrypted(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    assert Capability.SEARCH not in driver.capabilities
    await driver.update_session(SECRETIVE)
    params = {"sessionId": "x", "prompt": [{"type": "text", "text": "find the needle here"}]}
    prompt = {"jsonrpc": "2.0", "id": 1, "method": "session/prompt", "params": params}
    event = make_event("e", payload=msgspec.json.encode(prompt))
    event.sender = "client"
    await driver.append_events("s", [event])
    (hit,) = await driver.search_events("needle")
    assert (hit.session_id, hit.sequence) == ("s", 1)
    assert await driver.search_events("haystack") == []


async def test_listings_are_whole_and_without_keys_at_every_page_size(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    for number in range(7):
        await driver.update_session(make_session(f"s{number}", created_at=10 + number // 2))
    # Histories without a record have keys, too.
    for number in range(5):
        await driver.append_events(f"alone{number}", [spoken(f"e{number}", f"alone{number}")])
    expected = [f"s{number}" for number in range(7)]
    for limit in (1, 2, 3, 6, 7, 8, 100):
        assert [one.id for one in await all_sessions(driver, limit=limit)] == expected
    page = await driver.list_sessions(limit=7)
    assert page.next_cursor is None
    page = await driver.list_sessions(limit=2, cursor="3")
    assert [one.id for one in page.items] == ["s3", "s4"]
    page = await driver.list_sessions(cursor=page.next_cursor)
    assert [one.id for one in page.items] == ["s5", "s6"]
    assert (await driver.list_sessions(cursor="7")).items == []


async def test_a_wrong_key_is_an_error_that_names_the_right_one(store: SessionPersistDriver) -> None:
    await EncryptedSessionPersistDriver(store, key=KEY).update_session(SECRETIVE)
    await EncryptedSessionPersistDriver(store, key=KEY).append_events("s", [spoken("e")])
    driver = EncryptedSessionPersistDriver(store, key=OTHER_KEY)
    for call in (
        driver.get_session("s"),
        driver.list_sessions(),
        driver.list_events("s"),
        driver.tail_events("s", limit=1),
        driver.append_events("s", [spoken("f")]),
        driver.update_session(SECRETIVE),
    ):
        with pytest.raises(
            PersistError, match=r"'s' is encrypted with master key [0-9a-f]{16}, which is not among"
        ):
            await call
    # Nothing was stored by them.
    assert [one.id for one in await all_events(store, "s")] == ["e"]


async def test_an_event_that_was_changed_or_moved_is_refused(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    await driver.append_events("s", [spoken("a"), spoken("b")])
    await driver.append_events("t", [spoken("c", "t")])
    first, second = await all_events(store, "s")
    (foreign,) = await all_events(store, "t")
    flipped = first.payload_json.replace(b'"c":"', b'"c":"AAAA', 1)
    forgeries = [
        (first, {"payload_json": second.payload_json}, "was changed in the store"),
        (first, {"payload_json": flipped}, "was changed in the store"),
        (
            first,
            {"payload_json": first.payload_json[:-8] + b'AAAA=="}'},
            "was changed in the store|is not encrypted",
        ),
        (first, {"created_at": 1}, "was changed in the store"),
        (first, {"sender": "client"}, "was changed in the store"),
        (first, {"connection_id": "x"}, "was changed in the store"),
        (first, {"payload_json": foreign.payload_json}, "its key is not in the store"),
        (first, {"payload_json": b'{"method":"forged"}'}, "is not encrypted"),
    ]
    for event, changes, message in forgeries:
        forged = SessionEvent(
            event.id,
            event.event_index,
            "s",
            event.created_at,
            event.connection_id,
            event.sender,
            event.payload_json,
        )
        for name, value in changes.items():
            setattr(forged, name, value)
        await store.insert_event("s", forged)
        with pytest.raises(PersistError, match=message) as info:
            await driver.list_events("s")
        assert info.value.session_id == "s"
        await store.insert_event("s", first)
        assert len(await all_events(driver, "s")) == 2


async def test_a_record_or_key_that_was_changed_or_moved_is_refused(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    await driver.update_session(SECRETIVE)
    await driver.update_session(make_session("t"))
    record, key = await store.get_session("s"), await store.get_session(KEY_PREFIX + "s")
    other, other_key = await store.get_session("t"), await store.get_session(KEY_PREFIX + "t")
    assert record is not None and other is not None and key is not None and other_key is not None  # noqa: PT018
    replace = msgspec.structs.replace
    forgeries: list[tuple[SessionRecord, str]] = [
        (replace(record, agent="claude"), "was changed in the store"),
        (replace(record, destroyed_at=7), "was changed in the store"),
        (replace(record, session_init=other.session_init), "its key is not in the store"),
        (replace(record, session_init={"cwd": "/"}), "is not encrypted"),
        (replace(record, session_init=None), "is not encrypted"),
        (replace(key, session_init=other_key.session_init), "the key of session 's' was changed"),
        (replace(key, session_init={"key": 1}), "the key of session 's' is damaged"),
        (replace(key, session_init={"form": "v9"}), "has the form 'v9'"),
    ]
    for forged, message in forgeries:
        await store.update_session(forged)
        fresh = EncryptedSessionPersistDriver(store, key=KEY)
        for reader in (driver, fresh):
            with pytest.raises(PersistError, match=message):
                await reader.get_session("s")
            with pytest.raises(PersistError, match=message):
                await reader.list_sessions()
        await store.update_session(record)
        await store.update_session(key)
        assert await driver.get_session("s") == SECRETIVE


@pytest.mark.parametrize(
    "key", [b"", b"short", "k" * 32, "not base64!", base64.b64encode(b"k" * 31).decode(), "é" * 43]
)
def test_a_key_that_is_none_is_refused(key: bytes | str) -> None:
    with pytest.raises(InvalidRequestError, match="32 random bytes, or base64 text") as info:
        EncryptedSessionPersistDriver(InMemorySessionPersistDriver(), key=key)
    assert not key or str(key) not in str(info.value)


async def test_a_key_may_be_bytes_or_any_base64_of_them(store: SessionPersistDriver) -> None:
    material = bytes(range(222, 254))
    await EncryptedSessionPersistDriver(store, key=material).update_session(SECRETIVE)
    text = base64.b64encode(material).decode()
    for key in (
        text,
        text.rstrip("="),
        base64.urlsafe_b64encode(material).decode(),
        text + "\n",
        text.encode(),
    ):
        assert await EncryptedSessionPersistDriver(store, key=key).get_session("s") == SECRETIVE


async def test_the_ids_of_keys_are_no_sessions(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    await driver.update_session(SECRETIVE)
    for name in (KEY_PREFIX + "s", HEAD_PREFIX + "s"):
        await refuse(driver, name)


async def refuse(driver: EncryptedSessionPersistDriver, name: str) -> None:
    assert await driver.get_session(name) is None
    for call in (
        driver.update_session(make_session(name)),
        driver.append_events(name, [spoken("e", name)]),
        driver.insert_event(name, spoken("e", name, 1)),
        driver.claim_session(name),
        driver.erase(name),
    ):
        with pytest.raises(PersistError, match="ids that begin with '~key:' or '~head:' belong"):
            await call
    assert await driver.get_session("s") == SECRETIVE


async def test_a_value_that_is_not_json_is_refused_before_anything_is_stored(
    store: SessionPersistDriver,
) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    with pytest.raises(PersistError, match="session 's' can't be stored, it holds a value that is not JSON"):
        await driver.update_session(make_session("s", modes={"x": object()}))
    assert await store.get_session("s") is None


async def test_a_large_payload_goes_through_and_comes_back(store: SessionPersistDriver) -> None:
    driver = EncryptedSessionPersistDriver(store, key=KEY)
    event = make_event("e", payload=b'{"a":"%s"}' % (b"x" * 3_000_000))
    await driver.append_events("s", [event])
    assert (await driver.tail_events("s", limit=1))[0].payload_json == event.payload_json


async def test_the_inner_driver_stays_open_unless_it_was_given_away(tmp_path: Path) -> None:
    inner = SQLiteSessionPersistDriver(tmp_path / "store.db")
    driver = EncryptedSessionPersistDriver(inner, key=KEY)
    await driver.update_session(SECRETIVE)
    await driver.close()
    assert await inner.get_session("s") is not None
    await EncryptedSessionPersistDriver(inner, key=KEY, close_inner=True).close()
    with pytest.raises(PersistError, match="is closed"):
        await inner.get_session("s")


async def test_a_url_opens_an_encrypted_store_with_the_keys_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (base64.b64encode(key).decode() for key in (KEY, OTHER_KEY))
    url = f"encrypted+sqlite:{tmp_path / 's.db'}"
    monkeypatch.setenv(KEY_VARIABLE, old)
    driver = open_driver(url)
    await driver.update_session(SECRETIVE)
    await driver.close()
    monkeypatch.setenv(KEY_VARIABLE, f"{new}, {old}")
    driver = open_driver(url)
    assert isinstance(driver, EncryptedSessionPersistDriver)
    assert await driver.get_session("s") == SECRETIVE
    assert await driver.rotate_keys() == 1
    await driver.close()
    monkeypatch.setenv(KEY_VARIABLE, new)
    driver = open_driver(url)
    assert await driver.get_session("s") == SECRETIVE
    await driver.close()


def test_a_driver_that_does_not_fence_writers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"FiveMethodDriver can't be encrypted.* Capability\.FENCE: use"):
        EncryptedSessionPersistDriver(FiveMethodDriver(), key=KEY)
