"""What several tests look at."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, TypeVar, cast

from sandbox_agent import (
    AgentMessageChunk,
    ListPage,
    SandboxAgent,
    Session,
    SessionEvent,
    SessionPersistDriver,
)
from sandbox_agent.client.journal import Journal

__all__ = ["all_events", "find_repeated_events", "journal_of", "methods", "said", "sent_prompts", "until"]

T = TypeVar("T")


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds."""
    while True:
        if condition():
            return
        await asyncio.sleep(0)


def journal_of(session: Session) -> Journal:
    """Return the session's journal, which its public handle does not show."""
    return vars(session)["_core"].journal


async def all_events(sdk: SandboxAgent, session: Session) -> list[SessionEvent]:
    """Return the whole stored history, over all pages, and check that its indexes are contiguous."""
    events: list[SessionEvent] = []
    cursor: str | None = None
    while True:
        page = await sdk.get_events(session_id=session.id, limit=1000, cursor=cursor)
        events += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert [event.event_index for event in events] == list(range(1, len(events) + 1))
    assert len({event.id for event in events}) == len(events)
    return events


def said(events: list[SessionEvent]) -> str:
    """Return what the agent said, joined."""
    return "".join(event.update.text for event in events if isinstance(event.update, AgentMessageChunk))


def methods(events: list[SessionEvent]) -> list[str]:
    """Return each event's method, or "result"/"error" for responses."""
    return [
        event.payload.get("method") or ("error" if "error" in event.payload else "result") for event in events
    ]


def sent_prompts(events: list[SessionEvent]) -> list[Any]:
    """Return the blocks of each stored prompt."""
    return [
        event.payload["params"]["prompt"]
        for event in events
        if event.payload.get("method") == "session/prompt"
    ]


async def find_repeated_events(driver: SessionPersistDriver) -> list[str]:
    """Return the sessions of a store with an event that is stored twice or a hole in their indexes.

    An envelope that was stored under two ids counts, too.
    """
    found: list[str] = []
    # A test's own subclass may count the calls, or refuse them.
    kinds = cast("list[type[SessionPersistDriver]]", type(driver).__mro__)
    kind = next(kind for kind in kinds if kind.__module__.startswith("sandbox_agent."))
    async for session in _pages(partial(kind.list_sessions, driver)):
        events = [event async for event in _pages(partial(kind.list_events, driver, session.id))]
        indexes = [event.event_index for event in events]
        # A store in memory drops the oldest events.
        if indexes != list(range(indexes[0], indexes[0] + len(indexes)) if indexes else []):
            found.append(f"{session.id}: indexes {indexes}")
        counts: Counter[object] = Counter(
            chain((event.id for event in events), _requests_and_responses(events))
        )
        found.extend(f"{session.id}: event {what}" for what in counts if counts[what] > 1)
    return found


def _requests_and_responses(events: list[SessionEvent]) -> Iterator[tuple[str, str, str]]:
    """Yield the place of each request of the client and of each response of the agent, by its JSON-RPC id."""
    for event in events:
        request_id, method = event.payload.get("id"), event.payload.get("method")
        if request_id is not None and (event.sender == "client") == (method is not None):
            yield event.connection_id, str(request_id), str(method)


async def _pages(fetch: Callable[..., Awaitable[ListPage[T]]]) -> AsyncIterator[T]:
    page = await fetch(limit=1000)
    while True:
        for item in page.items:
            yield item
        if page.next_cursor is None:
            return
        page = await fetch(limit=1000, cursor=page.next_cursor)
