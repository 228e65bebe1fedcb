"""What several tests look at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sandbox_agent import AgentMessageChunk, SandboxAgent, Session, SessionEvent
from sandbox_agent.client.journal import Journal

__all__ = ["all_events", "journal_of", "methods", "said", "sent_prompts", "until"]


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
