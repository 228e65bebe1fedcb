"""The mock agent against a foreign implementation of ACP: the PyPI package ``agent-client-protocol``."""

import sys
from typing import Any, cast

import acp
import anyio
import pytest
from acp.schema import AllowedOutcome, PermissionOption, RequestPermissionResponse, ToolCallUpdate

from tests.agents.mock_client import PATIENCE

pytestmark = pytest.mark.anyio


class Recorder(acp.Client):
    """Allows everything once and keeps what it is told."""

    def __init__(self) -> None:
        self.updates: list[Any] = []
        self.asked: list[ToolCallUpdate] = []

    async def request_permission(
        self, session_id: str, tool_call: ToolCallUpdate, options: list[PermissionOption], **kwargs: Any
    ) -> RequestPermissionResponse:
        self.asked.append(tool_call)
        (option,) = [option for option in options if option.kind == "allow_once"]
        return RequestPermissionResponse(
            outcome=AllowedOutcome(outcome="selected", option_id=option.option_id)
        )

    async def session_update(self, session_id: str, update: Any, **kwargs: Any) -> None:
        self.updates.append(update)


async def test_a_foreign_client_plays_the_demo_with_a_permission() -> None:
    recorder = cast("type[Any]", Recorder)()  # the protocol's other methods are never called
    command = [sys.executable, "-P", "-m", "sandbox_agent.agents.mock"]
    with anyio.fail_after(PATIENCE):
        async with acp.spawn_agent_process(recorder, *command) as (connection, _process):
            initialized = await connection.initialize(protocol_version=acp.PROTOCOL_VERSION)
            assert initialized.agent_info
            assert initialized.agent_info.name == "mock"
            session = await connection.new_session(cwd="/work", mcp_servers=[])
            assert session.config_options
            assert session.modes
            await connection.set_session_mode(session_id=session.session_id, mode_id="plan")
            response = await connection.prompt(session_id=session.session_id, prompt=[acp.text_block("demo")])
            help_response = await connection.prompt(
                session_id=session.session_id, prompt=[acp.text_block("help")]
            )
    assert response.stop_reason == help_response.stop_reason == "end_turn"
    assert response.usage
    assert response.usage.total_tokens == 1234
    assert [call.title for call in recorder.asked] == ["Write hello.txt"]
    assert {update.session_update for update in recorder.updates} == {
        "agent_message_chunk",
        "agent_thought_chunk",
        "available_commands_update",
        "config_option_update",
        "current_mode_update",
        "plan",
        "session_info_update",
        "tool_call",
        "tool_call_update",
        "usage_update",
    }
