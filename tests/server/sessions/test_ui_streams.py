"""Responses to the AI SDK end, whatever ends their turn."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import TurnRow
from sandbox_agent.server.permissions import automatic
from sandbox_agent.server.permissions.automatic import Watcher
from sandbox_agent.server.streams.session_views import UI_DONE, UiTurnView
from sandbox_agent.server.streams.viewers import Viewer
from tests.server.sessions.stack import TIMEOUT, Stack, running

pytestmark = pytest.mark.anyio


class Response:
    """A response to the AI SDK, which is read in a task of its own."""

    def __init__(self, stack: Stack, watcher: Watcher) -> None:
        self.data = b""
        self.waiting = anyio.Event()
        self.ended = anyio.Event()
        self.store_fails = False
        self._stack = stack
        self._watcher = watcher

    async def read(self, turn: TurnRow) -> None:
        session = await self._stack.recorder.open("s")

        async def is_for_people(request: str) -> bool:
            if self.store_fails:
                raise PersistError("the store does not answer")
            return await self._watcher.waits_for_people(session.row, request)

        view = UiTurnView(
            session,
            self._stack.store,
            turn.turn_id,
            first=turn.first_sequence,
            last=turn.last_sequence,
            is_for_people=is_for_people,
        )
        async for data in Viewer(view, 0, UNNAMED):
            self.data += data
            if b"tool-approval-request" in data:
                self.waiting.set()
        self.ended.set()

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """What was sent before the mark of the end, which is checked."""
        assert self.data.endswith(UI_DONE)
        lines = self.data.removesuffix(UI_DONE).split(b"\n\n")
        return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]


class Hanging:
    """Answers nothing: the store or the agent hangs."""

    async def answer(self, session_id: str, permission_id: str, result: dict[str, Any], by: str) -> bool:
        raise PersistError("the store does not answer")


@asynccontextmanager
async def chatting(
    stack: Stack, text: str, *, seen: bool = True, **settings: Any
) -> AsyncGenerator[Response]:
    """Send a message, and read its turn; at the end of the block, the response has to end."""
    await stack.create(**settings)
    with anyio.fail_after(TIMEOUT):
        async with Watcher(stack.store, Hanging()).run() as watcher, anyio.create_task_group() as tasks:
            stack.recorder.listeners.append(watcher.on_stored)
            response = Response(stack, watcher)
            tasks.start_soon(response.read, await stack.say(text))
            if seen:
                await response.waiting.wait()
            yield response
            await response.ended.wait()


async def test_a_response_ends_for_people_if_the_policy_cannot_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automatic, "RETRY_SECONDS", 0.001)
    async with (
        running(tmp_path) as stack,
        chatting(stack, "permission", seen=False, permission_mode="allow") as response,
    ):
        pass
    assert [chunk["type"] for chunk in response.chunks[-3:]] == [
        "tool-approval-request",
        "finish-step",
        "finish",
    ]
    assert response.chunks[-1]["finishReason"] == "tool-calls"


async def test_a_response_ends_with_its_session(tmp_path: Path) -> None:
    async with running(tmp_path) as stack, chatting(stack, "permission", permission_mode="allow") as response:
        await stack.sessions.terminate("s")
    assert response.chunks[-1]["type"] in ("error", "abort")


async def test_a_response_of_a_session_that_is_deleted_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as stack, chatting(stack, "permission", permission_mode="allow") as response:
        await stack.sessions.delete("s")
    assert response.chunks[-1]["type"] in ("error", "abort")


async def test_a_response_says_that_the_server_shuts_down(tmp_path: Path) -> None:
    async with running(tmp_path) as stack, chatting(stack, "permission", permission_mode="allow") as response:
        await stack.recorder.end_viewers()
    assert response.chunks[-1] == {"type": "error", "errorText": "The server is shutting down."}


async def test_a_response_says_that_the_store_cannot_be_read(tmp_path: Path) -> None:
    async with running(tmp_path) as stack, chatting(stack, "permission", permission_mode="allow") as response:
        response.store_fails = True
        (await stack.recorder.open("s")).signal.tick()
    assert response.chunks[-1]["errorText"].startswith("The events of this turn cannot be read now.")
