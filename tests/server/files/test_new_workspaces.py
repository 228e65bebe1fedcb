"""A session is created while its workspace is recorded; its first prompt waits for that, not for ever."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest

from sandbox_agent import ConflictError
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.server.agents.workspaces import Workspaces
from sandbox_agent.server.files import baselines
from sandbox_agent.server.files.baselines import Baselines
from sandbox_agent.wire.jsonrpc import Head, dumps, read_head
from tests.server.files.test_diff import hanging_git, recording
from tests.server.files.test_snapshots import make_repo
from tests.support.servers import ServerProcess, our_server, put_launcher

__all__ = ["hanging_git"]

pytestmark = pytest.mark.anyio

Row = dict[str, Any]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    found = make_repo(tmp_path / "repo")
    (found / "changed").write_text("before\n")
    return found


@pytest.fixture
def blocked_git(tmp_path: Path) -> Generator[Callable[[], None]]:
    """A Git, in ``bin``, that waits until the function is called."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "bin").mkdir()
    real = shutil.which("git")
    # It opens the pipe, which takes until another process has opened it, too.
    (tmp_path / "bin/git").write_text(f'#!/bin/sh\n: < {gate}\nexec {real} "$@"\n')
    (tmp_path / "bin/git").chmod(0o755)
    opened: list[int] = []
    yield lambda: opened.append(os.open(gate, os.O_RDWR))
    for descriptor in opened:
        os.close(descriptor)


def served(folder: Path) -> ServerProcess:
    """A server that runs the Git in ``bin``, and an agent that runs its prompts in a shell."""
    put_launcher(folder / "data", "codex", [sys.executable, "-m", "tests.support.shell_agent"])
    return our_server(folder, env={"PATH": f"{folder}/bin:{os.environ['PATH']}"})


class Client:
    """A client of one connection, with or without a name."""

    def __init__(self, server: ServerProcess, name: str | None) -> None:
        self.http = httpx2.AsyncClient(base_url=server.url, timeout=60)
        self._headers = {"content-type": "application/json"}
        if name is not None:
            self._headers["sandbox-agent-client"] = name

    async def post(self, number: int, method: str, **params: object) -> Row:
        """Send a request and return its response."""
        envelope = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        path = "/v1/acp/one" + ("?agent=codex" if number == 1 else "")
        answer = await self.http.post(path, content=dumps(envelope), headers=self._headers)
        return answer.json()

    async def create(self, repo: Path) -> None:
        """Start the agent and create its session."""
        await self.post(1, "initialize", protocolVersion=1, clientCapabilities={})
        made = await self.post(2, "session/new", cwd=str(repo), mcpServers=[])
        assert made["result"] == {"sessionId": "shell"}

    async def prompt(self, number: int, command: str) -> Row:
        """Run a command in the session."""
        block = {"type": "text", "text": command}
        return await self.post(number, "session/prompt", sessionId="shell", prompt=[block])


@pytest.mark.parametrize("name", [None, "me"], ids=["fast path", "named client"])
async def test_a_session_is_created_while_git_works_and_its_prompt_waits(
    tmp_path: Path, repo: Path, blocked_git: Callable[[], None], name: str | None
) -> None:
    with served(tmp_path) as server:
        client = Client(server, name)
        async with client.http:
            await client.create(repo)
            answers: list[Row] = []

            async def prompt() -> None:
                answers.append(await client.prompt(3, f"echo first >> {repo}/changed"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(prompt)
                for number in range(4, 14):  # the agent answers other requests meanwhile
                    other = await client.post(number, "initialize", protocolVersion=1, clientCapabilities={})
                    assert other["id"] == number
                assert answers == []
                blocked_git()
            assert [answer["result"]["stopReason"] for answer in answers] == ["end_turn"]
            answer = await client.http.get("/v1/fs/diff", params={"session": "shell", "agent": "codex"})
            assert " before\n+first\n" in answer.text, answer.text


async def test_a_prompt_that_waits_fails_at_once_when_the_agent_ends(
    tmp_path: Path, repo: Path, blocked_git: Callable[[], None]
) -> None:
    with served(tmp_path) as server:
        client = Client(server, "me")
        async with client.http:
            await client.create(repo)
            answers: list[Row] = []

            async def prompt() -> None:
                answers.append(await client.prompt(3, "true"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(prompt)
                for number in range(4, 14):  # the prompt is sent before these
                    await client.post(number, "initialize", protocolVersion=1, clientCapabilities={})
                await client.http.delete("/v1/acp/one")
            assert answers[0]["type"] == "urn:sandbox-agent:error:agent_process_exited", answers
        blocked_git()


def request(method: str, **params: object) -> tuple[Head, bytes]:
    envelope = dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"sessionId": "one", **params}})
    return read_head(envelope), envelope


@asynccontextmanager
async def new_session(folder: Path, repo: Path) -> AsyncGenerator[tuple[Workspaces, Baselines]]:
    """A session that an agent has just created."""
    async with recording(folder) as found:
        workspaces = Workspaces("codex", found)
        response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        workspaces.watch(*request("session/new", cwd=str(repo)), response)
        response.set_result(b'{"jsonrpc":"2.0","id":1,"result":{"sessionId":"one"}}')
        await anyio.lowlevel.checkpoint()
        yield workspaces, found


def row_of(repo: Path) -> SessionRow:
    return SessionRow(
        key=1,
        session_id="other",
        agent="codex",
        created_at=0,
        updated_at=0,
        native_session_id="one",
        directory=str(repo),
    )


async def test_a_prompt_does_not_wait_longer_than_a_workspace_may_take(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, hanging_git: Callable[[], None]
) -> None:
    monkeypatch.setattr(baselines, "RECORD_SECONDS", 0.05)
    hanging_git()
    async with new_session(tmp_path, repo) as (workspaces, found):
        head, prompt = request("session/prompt")
        assert workspaces.may_hold(head)
        await workspaces.wait(head, prompt)
        assert not workspaces.may_hold(head)
        with pytest.raises(ConflictError, match="was not recorded"):
            await found.compare(row_of(repo))


async def test_a_workspace_on_a_file_system_that_hangs_does_not_hold_a_prompt(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "RECORD_SECONDS", 0.05)
    reached, hangs = threading.Event(), threading.Event()

    def find(_folder: str) -> None:
        reached.set()
        hangs.wait()

    monkeypatch.setattr(baselines, "find_work_tree", find)
    async with new_session(tmp_path, repo) as (workspaces, _):
        try:
            await workspaces.wait(*request("session/prompt"))
            assert reached.is_set()
        finally:
            hangs.set()


async def test_a_cancellation_follows_the_prompt_and_ends_its_wait(
    tmp_path: Path, repo: Path, hanging_git: Callable[[], None]
) -> None:
    hanging_git()
    async with new_session(tmp_path, repo) as (workspaces, found):
        await workspaces.wait(*request("session/cancel"))  # there is no prompt yet
        sent: list[str] = []

        async def send(method: str) -> None:
            await workspaces.wait(*request(method))
            sent.append(method)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, "session/prompt")
            await anyio.wait_all_tasks_blocked()
            await workspaces.wait(*request("session/prompt", sessionId="other"))
            assert sent == []
            tasks.start_soon(send, "session/cancel")
        assert sent == ["session/prompt", "session/cancel"]
        with pytest.raises(ConflictError, match="was not recorded"):
            await found.compare(row_of(repo))
