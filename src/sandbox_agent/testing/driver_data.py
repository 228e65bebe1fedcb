"""Sessions and events to test a driver with, and what reads them back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from sandbox_agent.persist.base import SessionPersistDriver, all_pages
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

# How long a test waits for what must happen, in seconds.
PATIENCE = 60.0

# Text that a store may change: quotes, beyond the BMP, a null character, separators of JavaScript, and an
# escaped lone surrogate, which is JSON that no strict UTF-8 text can hold.
NASTY_JSON = (
    b'{"jsonrpc":"2.0","method":"session/update","params":{"a":"\\u0000 \\ud800 \\"q\\" \'s\'",'
    b'"b":"\xf0\x9f\xa6\x80 \xe2\x80\xa8 \xc3\xa9","big":123456789012345678901234567890,"f":1e-7,'
    b'"nested":{"deep":[[[[null,true,false]]]]},"sp":  [ 1 , 2 ]}}'
)


def make_session(session_id: str, *, created_at: int = 1_700_000_000_000, **fields: Any) -> SessionRecord:
    """Return a record with plausible fields; ``fields`` replace or add some."""
    values: dict[str, Any] = {
        "id": session_id,
        "agent": "mock",
        "agent_session_id": f"agent-{session_id}",
        "last_connection_id": "connection-1",
        "created_at": created_at,
        **fields,
    }
    return SessionRecord(**values)


def make_event(
    event_id: str, session_id: str = "s", index: int = 0, *, payload: bytes | None = None
) -> SessionEvent:
    """Return an event of the agent's; its payload names its id unless given."""
    return SessionEvent(
        event_id,
        index,
        session_id,
        1_700_000_000_000 + index,
        "connection-1",
        "agent",
        payload or b'{"jsonrpc":"2.0","method":"session/update","params":{"event":"%s"}}' % event_id.encode(),
    )


async def all_events(
    driver: SessionPersistDriver, session_id: str, *, limit: int | None = None
) -> list[SessionEvent]:
    """Return the session's events, page by page."""
    pages = all_pages(partial(driver.list_events, session_id, limit=limit))
    return [event async for events in pages for event in events]


async def all_sessions(driver: SessionPersistDriver, *, limit: int | None = None) -> list[SessionRecord]:
    """Return the records, page by page."""
    pages = all_pages(partial(driver.list_sessions, limit=limit))
    return [record async for records in pages for record in records]


@asynccontextmanager
async def patient_group() -> AsyncGenerator[TaskGroup]:
    """Return a task group that raises TimeoutError after ``PATIENCE``."""
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            yield group


def ids_of(page: ListPage[SessionEvent]) -> list[str]:
    """Return the ids of a page's events."""
    return [event.id for event in page.items]


async def refusal(call: Awaitable[object], expected: type[E]) -> E:
    """Return the error that the call must raise."""
    try:
        await call
    except expected as error:
        return error
    raise AssertionError(f"expected {expected.__name__}, nothing was raised")
