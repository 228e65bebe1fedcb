"""Clients in programs with several event loops, or with none of asyncio: one clear line."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from sandbox_agent import (
    InMemorySessionPersistDriver,
    PostgresSessionPersistDriver,
    RedisSessionPersistDriver,
    SandboxAgent,
    SandboxAgentError,
    SandboxProvider,
    SQLiteSessionPersistDriver,
    sync,
)
from tests.support.servers import ServerProcess

ENDED = "belongs to an event loop that has ended, such as that of an earlier asyncio.run.*sandbox_agent.sync"
NO_LOOP = "needs a running asyncio event loop.*asyncio.run.*sandbox_agent.sync.*trio"
# In a process of its own: what a client of an ended event loop holds is only closed with the process.
PROGRAM = """
import asyncio, sys
from sandbox_agent import SandboxAgent, SandboxAgentError

async def connect():
    sdk = await SandboxAgent.connect(sys.argv[1])
    return sdk, await sdk.create_session(agent="mock", id="s")

sdk, session = asyncio.run(connect())
CALLS = {
    "create_session": lambda: sdk.create_session(agent="mock"),
    "create_session of the server": lambda: sdk.create_session("s", agent="mock"),
    "resume_session": lambda: sdk.resume_session("s"),
    "resume_or_create_session": lambda: sdk.resume_or_create_session(id="s", agent="mock"),
    "get_session": lambda: sdk.get_session("s"),
    "list_sessions": lambda: sdk.list_sessions(),
    "get_events": lambda: sdk.get_events(session_id="s"),
    "destroy_session": lambda: sdk.destroy_session("s"),
    "delete_session": lambda: sdk.delete_session("s"),
    "get_health": lambda: sdk.get_health(),
    "get_agent": lambda: sdk.get_agent("mock"),
    "list_agents": lambda: sdk.list_agents(),
    "list_acp_servers": lambda: sdk.list_acp_servers(),
    "sessions.list": lambda: sdk.sessions.list(),
    "post_message": lambda: sdk.post_message("s", "hello"),
    "stream_events": lambda: anext(sdk.stream_events("s")),
    "files.list": lambda: sdk.files.list("/"),
    "processes.list": lambda: sdk.processes.list(),
    "config.get_mcp": lambda: sdk.config.get_mcp("/", "x"),
    "prompt": lambda: session.prompt("hello"),
    "ask": lambda: session.ask("hello"),
    "stream": lambda: anext(session.stream("hello")),
    "events": lambda: anext(session.events()),
    "cancel": lambda: session.cancel(),
    "set_model": lambda: session.set_model("mock"),
    "raw_send": lambda: session.raw_send("x"),
}

async def call(name):
    await CALLS[name]()

for name in CALLS:
    try:
        asyncio.run(call(name))
        print(name, "worked", sep="|")
    except Exception as error:
        print(name, type(error).__name__, error, sep="|")
asyncio.run(sdk.dispose())
"""


def test_a_client_of_an_ended_event_loop_says_so_and_names_the_sync_client(
    worker_server: ServerProcess,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, worker_server.url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == PROGRAM.count(": lambda:")
    wrong = [line for line in lines if not re.search(rf"\|SandboxAgentError\|.*{ENDED}", line)]
    assert wrong == []


def test_a_client_that_was_disposed_says_that_it_was(worker_server: ServerProcess) -> None:
    async def connect() -> SandboxAgent:
        async with SandboxAgent.connect(worker_server.url) as client:
            return client

    async def use(client: SandboxAgent) -> None:
        await client.get_health()

    client = asyncio.run(connect())
    with pytest.raises(SandboxAgentError, match="is disposed"):
        asyncio.run(use(client))


def test_a_client_without_async_is_used_from_several_event_loops(worker_server: ServerProcess) -> None:
    async def prompt(sdk: sync.SandboxAgent) -> str:
        return await asyncio.to_thread(lambda: sdk.resume_session("sync").ask("echo hello"))

    with sync.SandboxAgent.connect(worker_server.url) as sdk:
        sdk.create_session(agent="mock", id="sync")
        assert [asyncio.run(prompt(sdk)) for _ in range(2)] == ["hello", "hello"]


class NoProvider(SandboxProvider):
    """Fails the test if a sandbox is created."""

    name = "none"

    async def create(self) -> str:
        raise AssertionError("a sandbox was created")

    async def destroy(self, sandbox_id: str, /) -> None: ...

    async def get_url(self, sandbox_id: str, /) -> str:
        return "http://127.0.0.1:1"


@pytest.mark.parametrize(
    "begin",
    [
        lambda: SandboxAgent.connect("http://127.0.0.1:1"),
        lambda: SandboxAgent.start(sandbox=NoProvider()),
    ],
    ids=["connect", "start"],
)
@pytest.mark.parametrize("entered", [False, True])
def test_trio_gets_one_clear_line(begin: Callable[[], Any], entered: bool) -> None:
    async def main() -> None:
        if entered:
            async with begin():
                pass
        else:
            await begin()

    with pytest.raises(SandboxAgentError, match=NO_LOOP) as caught:
        trio.run(main)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
def test_a_driver_in_trio_gets_the_same_line(kind: str, tmp_path: Path) -> None:
    make: dict[str, Callable[[], Any]] = {
        "sqlite": lambda: SQLiteSessionPersistDriver(tmp_path / "trio.db"),
        "postgres": lambda: PostgresSessionPersistDriver("postgresql://user@127.0.0.1:1/none"),
        "redis": lambda: RedisSessionPersistDriver("redis://127.0.0.1:1"),
    }

    async def main() -> None:
        await make[kind]().get_session("s")

    with pytest.raises(SandboxAgentError, match=NO_LOOP):
        trio.run(main)


def test_the_driver_in_memory_works_in_trio() -> None:
    async def main() -> object:
        return await InMemorySessionPersistDriver().get_session("s")

    assert trio.run(main) is None


def test_a_client_that_is_made_outside_of_an_event_loop_works_in_the_one_that_it_is_entered_in(
    worker_server: ServerProcess,
) -> None:
    opened = SandboxAgent.connect(worker_server.url)

    async def main() -> str:
        async with opened as client:
            return (await client.get_health()).status

    assert asyncio.run(main()) == "ok"
