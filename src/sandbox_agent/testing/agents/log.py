"""Checks the server's log of universal events."""

from __future__ import annotations

from collections import Counter

from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.wire.universal import (
    AgentUnparsedData,
    ItemEventData,
    PermissionEventData,
    QuestionEventData,
    TurnEventData,
    UniversalEvent,
)


async def check_log(sdk: SandboxAgent) -> None:
    """Check the events of all sessions of a server.

    Raises:
        AssertionError: The message names what is wrong, by kind.
    """
    faults: Counter[str] = Counter()
    count = 0
    async for info in sdk.sessions.iterate():
        count += 1
        faults.update(log_faults(await _events_of(sdk, info.session_id)))
    assert count, "the server has no sessions"
    assert not faults, "; ".join(f"{fault} ({number}x)" for fault, number in faults.most_common(5))


async def _events_of(sdk: SandboxAgent, session_id: str) -> list[UniversalEvent]:
    events: list[UniversalEvent] = []
    while True:
        offset = events[-1].sequence if events else 0
        page = await sdk.sessions.get_events(session_id, offset=offset, limit=1000)
        events += page.events
        if not page.has_more:
            return events


def log_faults(events: list[UniversalEvent]) -> list[str]:
    """Return what is wrong with the events of a session: gaps, what is left open, what was not understood."""
    faults: list[str] = []
    if [event.sequence for event in events] != list(range(1, len(events) + 1)):
        faults.append("the sequence has a gap")
    opened: dict[str, str] = {}
    for event in events:
        data = event.data
        if isinstance(data, AgentUnparsedData):
            faults.append(f"unparsed: {data.error}")
        key = _key(data)
        if key is None:
            continue
        if event.type.endswith((".started", ".requested")):
            if key in opened:
                faults.append(f"{event.type} twice")
            opened[key] = event.type
        elif event.type.endswith((".completed", ".ended", ".resolved")) and opened.pop(key, None) is None:
            faults.append(f"{event.type} without its start")
    return faults + [f"{kind} without its end" for kind in opened.values()]


def _key(data: object) -> str | None:
    if isinstance(data, ItemEventData):
        return f"item {data.item.item_id}"
    if isinstance(data, TurnEventData):
        return f"turn {data.turn_id}"
    if isinstance(data, PermissionEventData):
        return f"permission {data.permission_id}"
    if isinstance(data, QuestionEventData):
        return f"question {data.question_id}"
    return None
