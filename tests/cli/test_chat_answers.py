"""What is typed in a chat answers only the request that the user sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from sandbox_agent.cli.chat.app import Chat
from sandbox_agent.cli.launch import Launch

pytestmark = pytest.mark.anyio


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - nothing signals it
            await anyio.sleep(0.01)


def typed(chat: Chat) -> str:
    """Return what is on the line."""
    return chat._prompt.default_buffer.text  # pyright: ignore[reportPrivateUsage]


@asynccontextmanager
async def chatting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[Chat, PipeInput]]:
    """Run a chat with the mock agent that reads from a pipe."""
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.chdir(folder)
    options = dict.fromkeys((each.name for each in Launch.__dataclass_fields__.values()), None)
    given = {
        "agent": "mock", "sandbox": "local", "store": "chat.db", "newest": False, "keep": False,
        "allow_hosts": (), "agent_env": (), "agent_commands": (),
    }  # fmt: skip
    launch = Launch(**{**options, **given})  # pyright: ignore[reportArgumentType]
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        chat = Chat(launch)
        running = asyncio.ensure_future(chat.run())
        try:
            await until(lambda: chat.talks)
            yield chat, keys
            chat.ended = True
            keys.send_text("\x15/quit\r")
            with anyio.fail_after(30):
                assert await running == 0
        finally:
            running.cancel()
            await asyncio.wait({running})


async def test_an_answer_is_not_for_the_next_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with chatting(tmp_path, monkeypatch) as (chat, keys):
        keys.send_text("permission 2\r")
        await until(lambda: len(chat.front.session.pending_permissions()) == 2 and chat.front.asked_id)
        first, second = chat.front.session.pending_permissions()
        await until(lambda: chat.front.asked_id == first.id)
        keys.send_text("y")
        await until(lambda: typed(chat) == "y")
        await chat.front.session.respond_permission(first.id, "reject")  # as another client does
        keys.send_text("\r")
        await until(lambda: typed(chat) == "")
        await until(lambda: chat.front.asked_id == second.id)
        assert [request.id for request in chat.front.session.pending_permissions()] == [second.id]
        keys.send_text("n\r")
        await until(lambda: not chat.front.turns)
        assert chat.front.session.pending_permissions() == []


async def test_an_answer_is_no_message_when_nothing_is_asked_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chatting(tmp_path, monkeypatch) as (chat, keys):
        keys.send_text("permission\r")
        await until(lambda: chat.front.asked_id)
        keys.send_text("y")
        await until(lambda: typed(chat) == "y")
        (request,) = chat.front.session.pending_permissions()
        await chat.front.session.respond_permission(request.id, "reject")
        await until(lambda: not chat.front.turns)
        keys.send_text("\r")
        await until(lambda: typed(chat) == "")
        events = await chat.sdk.get_events(session_id=chat.front.session.id)
        assert [event.payload.get("method") for event in events.items].count("session/prompt") == 1
