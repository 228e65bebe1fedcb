"""What an agent sends after the response to a prompt: it is stored, and it completes its items."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from sandbox_agent import ItemEventData, SandboxAgent, ToolCallUpdate
from tests.client.checks import all_events

pytestmark = pytest.mark.anyio


def update(kind: str, **fields: Any) -> str:
    """Return an update of a tool call, for the garbling agent."""
    params = {"sessionId": "SESSION", "update": {"sessionUpdate": kind, "toolCallId": "c1", **fields}}
    return json.dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})


# The end of the call follows the response.
TURN = "\n".join(
    [
        update("tool_call", title="Run", status="in_progress", rawInput={"a": 1}),
        '{"jsonrpc":"2.0","id":ID,"result":{"stopReason":"cancelled"}}',
        update("tool_call_update", status="completed"),
    ]
)


async def test_a_call_that_ends_after_the_response_is_completed(
    sdk: SandboxAgent,
) -> None:
    await sdk.sessions.create("late", agent="garbling")
    await sdk.sessions.post_message("late", TURN)
    statuses: list[str] = []
    with anyio.fail_after(30):
        async with aclosing(sdk.sessions.stream_events("late", offset=0)) as events:
            async for event in events:
                if isinstance(event.data, ItemEventData) and event.data.item.kind == "tool_result":
                    statuses.append(event.data.item.status)
                    if event.data.item.status == "completed":
                        break
    assert statuses == ["in_progress", "failed", "in_progress", "completed"]


async def test_an_update_after_the_response_is_an_event_of_the_session(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="garbling")
    ended = anyio.Event()

    def on_event(event: Any) -> None:
        if isinstance(event.update, ToolCallUpdate) and event.update.status == "completed":
            ended.set()

    session.on_event(on_event)
    with anyio.fail_after(30):
        assert (await session.prompt(TURN)).stop_reason == "cancelled"
        await ended.wait()
    last = (await all_events(sdk, session))[-1].update
    assert isinstance(last, ToolCallUpdate)
    assert last.status == "completed"
