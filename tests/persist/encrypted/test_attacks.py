"""What hides events without touching them is found; what happens while a store is verified is no finding."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.encrypted.cipher import Sealed
from sandbox_agent.persist.encrypted.keys import KEY_PREFIX
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, make_event, make_session
from sandbox_agent.wire.records import ListPage, SessionEvent
from tests.persist.encrypted.conftest import Interrupted
from tests.persist.encrypted.test_chain import encrypt, fill, problems, rewrite, verified
from tests.persist.encrypted.test_keys import at_call

pytestmark = pytest.mark.anyio


async def change_key(store: SessionPersistDriver, **members: Any) -> None:
    """Change the record of the key of the session s; None removes a member."""
    record = await store.get_session(f"{KEY_PREFIX}s")
    assert record is not None
    assert record.session_init is not None
    content = {**record.session_init, **members}
    record.session_init = {name: value for name, value in content.items() if value is not None}
    await store.update_session(record)


async def key_id(store: SessionPersistDriver) -> str:
    record = await store.get_session(f"{KEY_PREFIX}s")
    assert record is not None
    assert record.session_init is not None
    return record.session_init["key"]["key_id"]


async def test_a_key_that_is_also_among_the_destroyed_ones_is_an_error(store: SessionPersistDriver) -> None:
    await fill(store)
    await change_key(store, gone=[await key_id(store)])
    for read in (
        encrypt(store).get_session("s"),
        all_events(encrypt(store), "s"),
        encrypt(store).list_sessions(),
    ):
        with pytest.raises(PersistError, match="the key of session 's' is damaged in the store"):
            await read
    with pytest.raises(PersistError, match="the key of session 's' is damaged"):
        await encrypt(store).append_events("s", [make_event("s-7")])
    assert "the key of session 's' is damaged" in "\n".join(await problems(encrypt(store)))


async def test_a_session_whose_key_was_destroyed_is_not_what_it_was(store: SessionPersistDriver) -> None:
    """Without a known head it was erased, which is nothing wrong."""
    await fill(store)
    known = {one.session_id: one.head for one in await verified(encrypt(store))}
    before = await store.get_session(f"{KEY_PREFIX}s")
    await change_key(store, key=None, gone=[await key_id(store)])
    (found,) = await verified(encrypt(store))
    assert (found.problems, found.notes) == (
        [],
        ["it was erased: its key was destroyed, its events can't be read"],
    )
    assert await problems(encrypt(store), known) == ["s: its key was destroyed: it was erased since"]
    await encrypt(store).append_events("s", [make_event("s-7")])
    assert [event.id for event in await all_events(encrypt(store), "s")] == ["s-7"]
    assert await problems(encrypt(store), known) == [
        "s: it has another key than before: it was erased, and created again"
    ]
    # The head of an earlier release does not name the key.
    assert known["s"].key
    assert before is not None
    await store.update_session(before)


async def test_an_event_with_an_unknown_key_is_found_by_verify(store: SessionPersistDriver) -> None:
    await fill(store)
    await fill(store, "t")
    (other, *_) = await all_events(store, "t")
    await store.insert_event("s", SessionEvent("strange", 7, "s", 1, "", "agent", other.payload_json))
    with pytest.raises(PersistError, match="event 'strange' of session 's' can't be read: its key"):
        await all_events(encrypt(store), "s")
    assert "s: event 7 ('strange') can't be read: its key is not in the store" in await problems(
        encrypt(store)
    )


async def test_a_changed_record_does_not_hide_what_else_is_wrong(store: SessionPersistDriver) -> None:
    await fill(store)
    record = await store.get_session("s")
    assert record is not None
    record.agent = "another"
    if isinstance(store, SQLiteSessionPersistDriver):
        events = await all_events(store, "s")
        await rewrite(store, "s", [*events[:2], *events[3:]])
    await store.update_session(record)
    found = "\n".join(await problems(encrypt(store)))
    assert "the record of session 's' can't be decrypted" in found
    assert not isinstance(store, SQLiteSessionPersistDriver) or "event 3 is missing before event 4" in found


async def test_nothing_is_linked_to_an_event_that_was_made_without_the_key(
    store: SessionPersistDriver,
) -> None:
    await fill(store)
    *_, last = await all_events(store, "s")
    sealed = Sealed.read(last.payload_json)
    # It claims the tag of the event that it replaces.
    forged = msgspec.structs.replace(sealed, data=sealed.data[:-1] + b"x", kept=sealed.tag)
    last.payload_json = msgspec.json.encode(forged)
    await store.insert_event("s", last)
    with pytest.raises(PersistError, match=r"event 6 \('s-6'\) was changed"):
        await encrypt(store).append_events("s", [make_event("s-7")])
    assert await store.last_event_index("s") == 6


class Listening(Interrupted):
    """Interrupted in listings, too."""

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        await self._enter("list", session_id)
        page = await super().list_events(session_id, limit=limit, cursor=cursor)
        await self._leave("list", session_id)
        return page


async def erase(store: SessionPersistDriver) -> None:
    await encrypt(store).erase("s")


async def erase_and_create(store: SessionPersistDriver) -> None:
    await encrypt(store).erase("s")
    await encrypt(store).update_session(make_session("s"))
    await encrypt(store).append_events("s", [make_event("new-1"), make_event("new-2")])


async def append(store: SessionPersistDriver) -> None:
    await encrypt(store).append_events("s", [make_event("more-1"), make_event("more-2")])


async def insert(store: SessionPersistDriver) -> None:
    await encrypt(store).insert_event("s", make_event("s-3", index=3, payload=b'{"again":1}'))
    await encrypt(store).insert_event("s", make_event("s-2", index=9))


@pytest.mark.parametrize("store", ["memory", "sqlite"], indirect=True)
@pytest.mark.parametrize("action", [erase, erase_and_create, append, insert])
async def test_what_happens_while_a_session_is_verified_is_no_finding(
    store: SessionPersistDriver, action: Callable[[SessionPersistDriver], Awaitable[None]]
) -> None:
    point = 0
    while True:
        await encrypt(store).erase("s")
        await fill(store)
        interrupted = Listening(store)
        interrupted.before = at_call(point, lambda: action(store))
        assert await problems(encrypt(interrupted)) == [], f"at call {point}"
        if point > len(interrupted.calls):
            break
        point += 1
    assert point > 4
