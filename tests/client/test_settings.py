"""Model, mode, thought level and options: set, refused, kept in the record."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    ListPage,
    SandboxAgent,
    Session,
    SessionRecord,
    UnsupportedSessionCategoryError,
    UnsupportedSessionConfigOptionError,
    UnsupportedSessionValueError,
)
from tests.client.checks import all_events, methods
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio


async def current(session: Session) -> dict[str, Any]:
    """Return each option's value."""
    return {option["id"]: option["currentValue"] for option in await session.get_config_options()}


async def test_settings_at_creation_are_set_and_stored(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", model="mock-fast", mode="plan", thought_level="high")
    assert await current(session) == {"model": "mock-fast", "mode": "plan", "thought_level": "high"}
    stored = await sdk.persist.get_session(session.id)
    assert stored == session.record
    assert stored is not None
    assert stored.modes is not None
    assert stored.modes["currentModeId"] == "plan"


async def test_settings_can_be_changed(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    await session.set_model("mock-fast")
    await session.set_thought_level("low")
    await session.set_mode("acceptEdits")
    await session.set_config_option("thought_level", "high")
    assert await current(session) == {"model": "mock-fast", "mode": "acceptEdits", "thought_level": "high"}
    modes = await session.get_modes()
    assert modes is not None
    assert modes["currentModeId"] == "acceptEdits"
    assert [mode["id"] for mode in modes["availableModes"]] == ["default", "acceptEdits", "plan"]


async def test_settings_changed_at_once_all_stay(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    await asyncio.gather(
        session.set_model("mock-fast"), session.set_thought_level("high"), session.set_mode("plan")
    )
    stored = await sdk.persist.get_session(session.id)
    assert stored is not None
    values = {option["id"]: option["currentValue"] for option in stored.config_options or []}
    assert values == {"model": "mock-fast", "mode": "plan", "thought_level": "high"}


async def test_a_value_that_does_not_exist_is_refused_with_what_does(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(UnsupportedSessionValueError) as model:
        await session.set_model("gpt-1")
    assert model.value.allowed_values == ["mock", "mock-fast"]
    with pytest.raises(UnsupportedSessionValueError) as mode:
        await session.set_mode("yolo")
    assert (mode.value.category, mode.value.requested_value) == ("mode", "yolo")
    with pytest.raises(UnsupportedSessionValueError):
        await session.set_config_option("thought_level", "galactic")
    assert methods(await all_events(sdk, session)) == ["session/new", "result"]


async def test_an_option_that_does_not_exist_is_refused_with_those_that_do(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(UnsupportedSessionConfigOptionError) as caught:
        await session.set_config_option("temperature", "1")
    assert caught.value.available_config_ids == ["mode", "model", "thought_level"]


async def test_an_empty_value_is_refused(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(ValueError, match="model is empty"):
        await session.set_model(" ")


async def test_a_setting_that_fails_at_creation_destroys_the_session(sdk: SandboxAgent) -> None:
    with pytest.raises(UnsupportedSessionValueError):
        await sdk.create_session(agent="mock", id="half", model="gpt-1")
    stored = await sdk.persist.get_session("half")
    assert stored is not None
    assert stored.destroyed_at is not None


async def test_resume_or_create_sets_what_it_is_given(sdk: SandboxAgent) -> None:
    await sdk.create_session(agent="mock", id="same")
    session = await sdk.resume_or_create_session(id="same", agent="mock", mode="plan", model="mock-fast")
    assert (await current(session))["mode"] == "plan"
    assert (await current(session))["model"] == "mock-fast"


async def test_options_come_from_the_server_where_the_agent_gave_none(sdk: SandboxAgent) -> None:
    # The odd agent answers our session/new with a sessionId only.
    session = await sdk.create_session(agent="claude")
    assert session.record.config_options is None
    options = {option["id"]: option for option in await session.get_config_options()}
    assert {"model", "mode"} <= set(options)
    stored = await sdk.persist.get_session(session.id)
    assert stored is not None
    assert stored.config_options == await session.get_config_options()
    modes = await session.get_modes()
    assert modes is not None
    assert "plan" in [mode["id"] for mode in modes["availableModes"]]


async def test_set_mode_falls_back_to_the_option_where_the_agent_lacks_the_method(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    await session.set_mode("plan")
    assert methods(await all_events(sdk, session))[-4:] == [
        "session/set_mode",
        "error",
        "session/set_config_option",
        "result",
    ]
    assert (await current(session))["mode"] == "plan"
    assert ((await session.get_modes()) or {})["currentModeId"] == "plan"


async def test_a_category_that_the_agent_lacks_is_refused_with_those_it_has(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    with pytest.raises(UnsupportedSessionCategoryError) as caught:
        await session.set_thought_level("high")
    assert {"mode", "model"} <= set(caught.value.available_categories)
    assert "thought_level" not in caught.value.available_categories


async def test_session_init_wins_over_cwd_and_is_stored(sdk: SandboxAgent) -> None:
    servers: list[dict[str, Any]] = [{"name": "x", "command": "/bin/true", "args": [], "env": []}]
    session = await sdk.create_session(agent="mock", cwd="/tmp", mcp_servers=servers)
    init = dict(session.record.session_init or {})
    assert init.pop("_meta") == {"sandbox-agent": {"version": 1, "chosen": {}}}
    assert init == {"cwd": "/tmp", "mcpServers": servers}
    other = await sdk.create_session(agent="mock", cwd="/tmp", session_init={"cwd": "/", "_meta": {"a": 1}})
    assert other.record.session_init == {
        "cwd": "/",
        "mcpServers": [],
        "_meta": {"a": 1, "sandbox-agent": {"version": 1, "chosen": {}}},
    }
    # The agent gets what the caller gave, without this SDK's own member.
    sent = [(await all_events(sdk, each))[0].payload["params"] for each in (session, other)]
    assert sent == [
        {"cwd": "/tmp", "mcpServers": servers},
        {"cwd": "/", "mcpServers": [], "_meta": {"a": 1}},
    ]


class LateDriver(InMemorySessionPersistDriver):
    """Answers with what was stored when it was asked, once the test says so."""

    gate: asyncio.Event | None = None

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        record = await super().get_session(session_id)
        if self.gate is not None:
            await self.gate.wait()
        return record

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        page = await super().list_sessions(limit=limit, cursor=cursor)
        if self.gate is not None:
            await self.gate.wait()
        return page


async def test_a_store_that_answers_late_does_not_undo_what_was_set_meanwhile(
    shared_server: ServerProcess,
) -> None:
    driver = LateDriver()
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock")
        driver.gate = asyncio.Event()
        asked = asyncio.gather(sdk.get_session(session.id), sdk.list_sessions())
        await asyncio.sleep(0)
        await session.set_model("mock-fast")
        driver.gate.set()
        await asked
        options = await session.get_config_options()
    assert [option["currentValue"] for option in options if option["id"] == "model"] == ["mock-fast"]


async def test_an_update_right_behind_the_session_is_newer_than_it(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude", cwd="/plan")
    await session.prompt("hello")
    modes = await session.get_modes()
    assert modes is not None
    assert modes["currentModeId"] == "plan"
