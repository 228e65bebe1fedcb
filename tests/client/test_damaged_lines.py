"""An agent's line that is not a message: it is an event of the sessions, in the SDK and in the server."""

from __future__ import annotations

import logging

import anyio
import pytest

from sandbox_agent import AcpRpcError, AgentUnparsedData, SandboxAgent, TurnEventData
from tests.client.checks import all_events, methods, said

pytestmark = pytest.mark.anyio

END = '{"jsonrpc":"2.0","id":ID,"result":{"stopReason":"end_turn"}}'
CHUNK = (
    '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"SESSION","update":'
    '{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"heard"}}}}'
)
INVALID = "_adapter/invalid_stdout"


async def test_a_damaged_turn_ends_and_its_raw_lines_are_events_and_warnings(
    sdk: SandboxAgent, caplog: pytest.LogCaptureFixture
) -> None:
    session = await sdk.create_session(agent="garbling")
    with anyio.fail_after(30), caplog.at_level(logging.WARNING, "sandbox_agent.client"):
        response = await session.prompt(f"warning: foo {CHUNK}\n\x1b[1m{END}\x1b[0m")
    assert response.stop_reason == "end_turn"
    events = await all_events(sdk, session)
    assert methods(events)[2:] == ["session/prompt", INVALID, "session/update", INVALID, "result"]
    assert said(events) == "heard"
    raw = events[3].payload["params"]
    assert raw["raw"] == "warning: foo " + CHUNK.replace("SESSION", session.agent_session_id)
    assert events[4].payload["params"]["_meta"] == {"sandbox-agent": {"repaired": ["prefix"]}}
    told = [record for record in caplog.records if "warning: foo" in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"]


async def test_a_prompt_whose_response_cannot_be_read_raises_with_the_line(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="garbling")
    with anyio.fail_after(30), pytest.raises(AcpRpcError, match="stopReason") as raised:
        await session.prompt(END[:-2])
    assert raised.value.code == -32700
    assert methods(await all_events(sdk, session))[-2:] == [INVALID, "error"]
    with anyio.fail_after(30):
        assert (await session.prompt(END)).stop_reason == "end_turn"


async def test_a_line_that_is_lost_is_an_event_of_every_session_of_the_connection(sdk: SandboxAgent) -> None:
    first, second = [await sdk.create_session(agent="garbling") for _ in range(2)]
    with anyio.fail_after(30):
        await first.prompt(f"{CHUNK[:-2]}\n{END}")
        await second.refresh()  # waits for its store
    for session in (first, second):
        assert INVALID in methods(await all_events(sdk, session))
    assert said(await all_events(sdk, first)) == ""


async def test_a_server_session_gets_the_events_of_a_damaged_turn(sdk: SandboxAgent) -> None:
    await sdk.sessions.create("damaged", agent="garbling")
    with anyio.fail_after(30):
        message = f"{CHUNK}\nwarning: foo {END}"
        events = [event async for event in sdk.sessions.stream_turn("damaged", message)]
        (unparsed,) = [event for event in events if isinstance(event.data, AgentUnparsedData)]
        assert str(unparsed.raw).startswith("warning: foo {")
        ended = events[-1].data
        assert isinstance(ended, TurnEventData)
        assert ended.metadata["stop_reason"] == "end_turn"


async def test_a_turn_of_a_server_session_fails_with_the_line(sdk: SandboxAgent) -> None:
    await sdk.sessions.create("broken", agent="garbling")
    with anyio.fail_after(30):
        events = [event async for event in sdk.sessions.stream_turn("broken", END[:-2])]
        assert [event.type for event in events[-3:]] == ["agent.unparsed", "error", "turn.ended"]
        ended = events[-1].data
        assert isinstance(ended, TurnEventData)
        assert "stopReason" in ended.metadata["error"]["message"]
        events = [event async for event in sdk.sessions.stream_turn("broken", END)]
        assert events[-1].type == "turn.ended"
