"""The SDK as a citizen of Python: odd arguments, other threads and loops, forks."""

from __future__ import annotations

import asyncio
import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    InvalidRequestError,
    PermissionRequest,
    SandboxAgent,
    SandboxAgentError,
    SessionFencedError,
    SQLiteSessionPersistDriver,
)
from tests.client.checks import journal_of
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("prefix", ["sqlite:", ""])
async def test_a_client_opens_and_closes_the_store_that_a_url_names(
    shared_server: ServerProcess, tmp_path: Path, prefix: str
) -> None:
    store = f"{prefix}{tmp_path / 'x.db'}"
    async with SandboxAgent.connect(base_url=shared_server.url, persist=store) as sdk:
        await sdk.create_session(agent="mock", id="mine")
        assert isinstance(sdk.persist, SQLiteSessionPersistDriver)
    async with SandboxAgent.connect(base_url=shared_server.url, persist=tmp_path / "x.db") as sdk:
        assert await sdk.get_session("mine") is not None


@pytest.mark.parametrize("persist", [SQLiteSessionPersistDriver, 7, object(), {}])
def test_what_is_no_store_is_refused_at_once(persist: Any) -> None:
    with pytest.raises(TypeError, match="persist must be a SessionPersistDriver or a store URL"):
        SandboxAgent.connect(base_url="http://127.0.0.1:1", persist=persist)


def test_an_unknown_store_url_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="oracle"):
        SandboxAgent(base_url="http://127.0.0.1:1", persist="oracle://x")


async def test_a_fencing_error_that_was_handled_is_not_raised_at_the_end(
    shared_server: ServerProcess, tmp_path: Path
) -> None:
    store = str(tmp_path / "x.db")
    with anyio.fail_after(20):
        async with SandboxAgent.connect(base_url=shared_server.url, persist=store) as first:
            session = await first.create_session(agent="mock", id="mine")
            async with SandboxAgent.connect(base_url=shared_server.url, persist=store) as second:
                await second.resume_session("mine", take_over=True)
                with pytest.raises(SessionFencedError):
                    await session.prompt("hello")


async def test_a_fencing_error_that_no_call_raised_is_raised_at_the_end(
    shared_server: ServerProcess, tmp_path: Path
) -> None:
    store = str(tmp_path / "x.db")
    with anyio.fail_after(20):
        first = await SandboxAgent.connect(base_url=shared_server.url, persist=store)
        session = await first.create_session(agent="mock", id="mine")
        async with SandboxAgent.connect(base_url=shared_server.url, persist=store) as second:
            await second.resume_session("mine", take_over=True)
        journal_of(session).change(destroyed_at=1)
        with pytest.raises(SessionFencedError):
            await first.dispose()


async def test_a_reply_from_another_thread_is_refused_and_changes_nothing(sdk: SandboxAgent) -> None:
    asked: asyncio.Future[PermissionRequest] = asyncio.get_running_loop().create_future()
    session = await sdk.create_session(agent="mock", permission_policy="ask")
    session.on_permission_request(asked.set_result)
    with anyio.fail_after(10):
        turn = asyncio.create_task(session.prompt("permission"))
        request = await asked

        def reply_in_a_thread() -> None:
            with pytest.raises(SandboxAgentError, match="another event loop"):
                session.respond_permission(request.id, "once")

        async def reply_in_a_loop() -> None:
            reply_in_a_thread()

        await asyncio.to_thread(reply_in_a_thread)
        await asyncio.to_thread(lambda: asyncio.run(reply_in_a_loop()))
        await session.respond_permission(request.id, "once")
        assert (await turn).stop_reason == "end_turn"


def _use_in_child(sdk: SandboxAgent, pipe: Pipe) -> None:
    async def use(call: Callable[[], Any]) -> str:
        try:
            async with asyncio.timeout(5):
                await call()
        except Exception as error:  # noqa: BLE001 - sent to the parent
            return f"{type(error).__name__}: {error}"
        return "no error"

    calls: list[Callable[[], Any]] = [
        sdk.list_agents,
        sdk.list_sessions,
        lambda: sdk.create_session(agent="mock"),
        lambda: sdk.get_session("mine"),
        lambda: sdk.get_events(session_id="mine"),
        lambda: sdk.delete_session("mine"),
        sdk.dispose,
    ]
    pipe.send([asyncio.run(use(call)) for call in calls])


async def test_a_forked_child_gets_a_clear_error_and_the_parent_is_unharmed(
    shared_server: ServerProcess, tmp_path: Path
) -> None:
    store = str(tmp_path / "x.db")
    async with SandboxAgent.connect(base_url=shared_server.url, persist=store) as sdk:
        session = await sdk.create_session(agent="mock", id="mine")
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_use_in_child, args=(sdk, there))
        with warnings.catch_warnings():
            # Newer versions of Python warn of every fork of a process with threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        results = await asyncio.to_thread(lambda: here.recv() if here.poll(50) else [])
        await asyncio.to_thread(child.join, 10)
        if child.is_alive():
            child.kill()
        *errors, disposed = results
        assert len(errors) == 6
        assert all("was created before this process was forked" in error for error in errors), errors
        assert disposed == "no error"
        assert (await session.prompt("hello")).stop_reason == "end_turn"


async def test_a_working_directory_may_be_a_path(sdk: SandboxAgent, tmp_path: Path) -> None:
    session = await sdk.create_session(agent="mock", cwd=tmp_path)
    assert (session.record.session_init or {})["cwd"] == str(tmp_path)


async def test_mcp_servers_may_have_python_dicts_as_env_and_headers(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(
        agent="mock",
        mcp_servers=[
            {"name": "files", "command": "mcp-files", "env": {"A": "1"}},
            {"type": "http", "name": "web", "url": "http://x", "headers": {"X": "2"}, "_meta": {"k": 1}},
            {"type": "sse", "name": "old", "url": "http://y", "headers": [{"name": "Z", "value": "3"}]},
        ],
    )
    assert (session.record.session_init or {})["mcpServers"] == [
        {"name": "files", "command": "mcp-files", "args": [], "env": [{"name": "A", "value": "1"}]},
        {
            "type": "http",
            "name": "web",
            "url": "http://x",
            "headers": [{"name": "X", "value": "2"}],
            "_meta": {"k": 1},
        },
        {"type": "sse", "name": "old", "url": "http://y", "headers": [{"name": "Z", "value": "3"}]},
    ]


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"name": "x", "command": "y", "envs": {}}, "mcp_servers.0.: unknown member 'envs'"),
        ({"name": "x", "command": "y", "env": {"A": 1}}, "mcp_servers.0..env must be"),
        ({"command": "y"}, "mcp_servers.0.: 'name' is missing"),
        ({"name": "x"}, "mcp_servers.0.: 'command' is missing"),
        ("x", "mcp_servers.0. must be a dict"),
    ],
)
async def test_an_mcp_server_that_acp_does_not_know_is_refused(
    sdk: SandboxAgent, server: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        await sdk.create_session(agent="mock", mcp_servers=[server])


def test_a_driver_that_was_made_elsewhere_is_used_as_it_is() -> None:
    driver = InMemorySessionPersistDriver()
    assert SandboxAgent(base_url="http://127.0.0.1:1", persist=driver).persist is driver
