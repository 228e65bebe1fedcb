"""What a client's listeners were called with, and waiting for more of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import anyio

__all__ = ["Event", "Seen", "chunks", "indexes", "text_of"]

# A session event as both SDKs give it: eventIndex, sender, payload, …
Event = dict[str, Any]
SECONDS = 30.0


def chunks(events: list[Event]) -> list[str]:
    """Return the texts of the agent's message chunks, in the order of the events."""
    updates = [_update(event) for event in events]
    return [
        update["content"]["text"]
        for update in updates
        if update.get("sessionUpdate") == "agent_message_chunk" and update["content"]["type"] == "text"
    ]


def text_of(events: list[Event]) -> str:
    """Return what the agent said in these events."""
    return "".join(chunks(events))


def indexes(events: list[Event]) -> list[int]:
    """Return the events' indexes."""
    return [event["eventIndex"] for event in events]


def _update(event: Event) -> dict[str, Any]:
    payload = event["payload"]
    return payload["params"]["update"] if payload.get("method") == "session/update" else {}


class Seen:
    """Events and permission requests by session, as they come."""

    def __init__(self) -> None:
        self.events: defaultdict[str, list[Event]] = defaultdict(list)
        self.permissions: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._texts: defaultdict[str, str] = defaultdict(str)
        self._changed = anyio.Event()

    def take_event(self, event: Event) -> None:
        """Add an event."""
        self.events[event["sessionId"]].append(event)
        self._texts[event["sessionId"]] += text_of([event])
        self._tell()

    def take_permission(self, permission: dict[str, Any]) -> None:
        """Add a permission request."""
        self.permissions[permission["sessionId"]].append(permission)
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was seen meets the condition."""
        with anyio.fail_after(SECONDS):
            while not condition():
                await self._changed.wait()

    async def says(self, session_id: str, text: str) -> None:
        """Wait until the agent has said that in the session."""
        await self.until(lambda: text in self._texts[session_id])

    async def permission(self, session_id: str, number: int = 1) -> dict[str, Any]:
        """Wait for the session's permission request of that number and return it."""
        await self.until(lambda: len(self.permissions[session_id]) >= number)
        return self.permissions[session_id][number - 1]
