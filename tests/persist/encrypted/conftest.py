"""Fixtures: stores that several drivers share, as processes do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from sandbox_agent.persist.base import UNFENCED, Capability, SessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

KEY = b"k" * 32
OTHER_KEY = b"o" * 32

Hook = Callable[[str, str], Awaitable[None]]


class Interrupted(SessionPersistDriver):
    """Passes everything on; before and after each call of the five methods something else may happen.

    Attributes:
        before: awaited with the method's name and the session's id before the call.
        after: the same when it has returned.
    """

    def __init__(self, inner: SessionPersistDriver) -> None:
        self.inner = inner
        vars(self).update(
            capabilities=inner.capabilities, drops_oldest=inner.drops_oldest, appends_head=inner.appends_head
        )
        self.before: Hook | None = None
        self.after: Hook | None = None
        self.calls: list[tuple[str, str]] = []

    async def _enter(self, name: str, session_id: str) -> None:
        self.calls.append((name, session_id))
        if self.before is not None:
            await self.before(name, session_id)

    async def _leave(self, name: str, session_id: str) -> None:
        if self.after is not None:
            await self.after(name, session_id)

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        await self._enter("get", session_id)
        record = await self.inner.get_session(session_id)
        await self._leave("get", session_id)
        return record

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        return await self.inner.list_sessions(limit=limit, cursor=cursor)

    async def update_session(self, session: SessionRecord, /) -> None:
        await self._enter("update", session.id)
        await self.inner.update_session(session)
        await self._leave("update", session.id)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        await self._enter("save", session.id)
        await self.inner.save_session(session, generation=generation)
        await self._leave("save", session.id)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        return await self.inner.list_events(session_id, limit=limit, cursor=cursor)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        await self._enter("insert", session_id)
        await self.inner.insert_event(session_id, event)
        await self._leave("insert", session_id)

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        await self._enter("append", session_id)
        await self.inner.append_events(session_id, events, generation=generation)
        await self._leave("append", session_id)

    async def append_sealed(
        self,
        session_id: str,
        events: Sequence[SessionEvent],
        head: SessionEvent,
        /,
        *,
        after: int,
        generation: int = UNFENCED,
    ) -> None:
        await self._enter("append", session_id)
        await self.inner.append_sealed(session_id, events, head, after=after, generation=generation)
        await self._leave("append", session_id)

    async def find_head(self, session_id: str, head_id: str, /) -> SessionEvent | None:
        return await self.inner.find_head(session_id, head_id)

    async def replace_head(self, session_id: str, head: SessionEvent, /) -> None:
        await self._enter("insert", head.session_id)
        await self.inner.replace_head(session_id, head)
        await self._leave("insert", head.session_id)

    def cursor_after(self, event_index: int, /) -> str | None:
        return self.inner.cursor_after(event_index)

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        return await self.inner.tail_events(session_id, limit=limit)

    async def last_event_index(self, session_id: str, /) -> int:
        return await self.inner.last_event_index(session_id)

    async def claim_session(self, session_id: str, /) -> int:
        await self._enter("claim", session_id)
        generation = await self.inner.claim_session(session_id)
        await self._leave("claim", session_id)
        return generation

    async def delete_session(self, session_id: str, /) -> None:
        await self._enter("delete", session_id)
        await self.inner.delete_session(session_id)
        await self._leave("delete", session_id)

    async def delete_sessions(self, session_ids: Sequence[str], /) -> None:
        await self._enter("delete", session_ids[-1])
        await self.inner.delete_sessions(session_ids)
        await self._leave("delete", session_ids[-1])


class KeepingDriver(InMemorySessionPersistDriver):
    """Fences writers, and can't delete."""

    capabilities: ClassVar[frozenset[Capability]] = InMemorySessionPersistDriver.capabilities - {
        Capability.DELETE
    }

    async def delete_session(self, session_id: str, /) -> None:
        raise NotImplementedError("it keeps everything")


@pytest.fixture(params=["keeping", "memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionPersistDriver]:
    """What is under the encryption."""
    kind: str = request.param
    if kind == "keeping":
        yield KeepingDriver()
    elif kind == "memory":
        yield InMemorySessionPersistDriver()
    else:
        driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
        yield driver
        await driver.close()
