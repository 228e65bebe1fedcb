"""The SDK as a citizen of Python: odd arguments, other threads and loops, forks."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    InvalidRequestError,
    ListPage,
    PermissionRequest,
    SandboxAgent,
    SandboxAgentError,
    Session,
    SessionFencedError,
    SessionNotFoundError,
    SQLiteSessionPersistDriver,
    SQLiteSink,
    TextContent,
    TokenInvalidError,
)
from tests.client.checks import journal_of
from tests.support.servers import ServerProcess, our_server

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
    with pytest.raises(
        TypeError, match=r"persist must be a SessionPersistDriver( or a store URL|, not a class)"
    ):
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


CALLS: dict[str, Callable[[Session], Any]] = {
    "prompt": lambda session: session.prompt("hello"),
    "stream": lambda session: anext(session.stream("hello")),
    "events": lambda session: anext(session.events()),
    "cancel": lambda session: session.cancel(),
    "raw_send": lambda session: session.raw_send("x"),
    "raw_send a notification": lambda session: session.raw_send("x", notification=True),
    "set_mode": lambda session: session.set_mode("plan"),
    "set_model": lambda session: session.set_model("mock"),
    "set_config_option": lambda session: session.set_config_option("model", "mock"),
    "set_permission_mode": lambda session: session.set_permission_mode("allow"),
    "get_modes": lambda session: session.get_modes(),
    "get_config_options": lambda session: session.get_config_options(),
    "refresh": lambda session: session.refresh(),
    "respond_permission": lambda session: session.respond_permission("p", "once"),
    "raw_respond_permission": lambda session: session.raw_respond_permission("p", {}),
}


async def _error_of(call: Callable[[], Any]) -> str:
    try:
        async with asyncio.timeout(5):
            await call()
    except Exception as error:  # noqa: BLE001 - the test compares it
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_from_another_thread_or_loop_is_refused_and_changes_nothing(
    sdk: SandboxAgent, name: str
) -> None:
    session = await sdk.create_session(agent="mock")
    before = (session.record, (await sdk.get_events(session_id=session.id)).items)

    def call_in_a_loop() -> str:
        return asyncio.run(_error_of(lambda: CALLS[name](session)))

    assert "belongs to another event loop" in await asyncio.to_thread(call_in_a_loop)
    with anyio.fail_after(10):
        assert (session.record, (await sdk.get_events(session_id=session.id)).items) == before
        assert (await session.prompt("hello")).stop_reason == "end_turn"


async def test_a_call_of_the_client_from_another_loop_is_refused_and_changes_nothing(
    sdk: SandboxAgent,
) -> None:
    session = await sdk.create_session(agent="mock", id="mine")
    calls: list[Callable[[], Any]] = [
        sdk.list_agents,
        lambda: sdk.create_session(agent="mock", id="other"),
        lambda: sdk.resume_session("mine"),
        lambda: sdk.get_session("mine"),
        sdk.list_sessions,
        lambda: sdk.destroy_session("mine"),
        lambda: sdk.delete_session("mine"),
        lambda: sdk.sessions.list(),
        lambda: anext(sdk.sessions.stream_events("s")),
        sdk.dispose,
    ]

    def call_in_a_loop() -> list[str]:
        async def use() -> list[str]:
            return [await _error_of(call) for call in calls]

        return asyncio.run(use())

    for error in await asyncio.to_thread(call_in_a_loop):
        assert "belongs to another event loop" in error
    with anyio.fail_after(10):
        assert [record.id for record in (await sdk.list_sessions()).items] == ["mine"]
        assert session.destroyed_at is None
        assert (await session.prompt("hello")).stop_reason == "end_turn"


def _in_fork(calls: Sequence[Callable[[], Any]]) -> list[str]:
    """Run the calls in a fork of this process; return the error of each."""
    here, there = multiprocessing.Pipe()

    def run() -> None:
        async def use() -> list[str]:
            return [await _error_of(call) for call in calls]

        there.send(asyncio.run(use()))

    child = multiprocessing.get_context("fork").Process(target=run)
    with warnings.catch_warnings():
        # Newer versions of Python warn of every fork of a process with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    errors = here.recv() if here.poll(50) else ["the child hangs"]
    child.join(10)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
    return errors


async def test_a_forked_child_gets_a_clear_error_and_the_parent_is_unharmed(
    shared_server: ServerProcess, tmp_path: Path
) -> None:
    async with SandboxAgent.connect(base_url=shared_server.url, persist=str(tmp_path / "x.db")) as sdk:
        session = await sdk.create_session(agent="mock", id="mine")
        calls: list[Callable[[], Any]] = [
            *(partial(call, session) for call in CALLS.values()),
            sdk.list_agents,
            sdk.list_sessions,
            lambda: sdk.create_session(agent="mock"),
            lambda: sdk.resume_session("mine"),
            lambda: sdk.get_session("mine"),
            lambda: sdk.get_events(session_id="mine"),
            lambda: sdk.destroy_session("mine"),
            lambda: sdk.delete_session("mine"),
            lambda: sdk.sessions.list(),
            lambda: anext(sdk.sessions.stream_events("s")),
            sdk.destroy_sandbox,
        ]
        *errors, disposed = _in_fork([*calls, sdk.dispose])
        assert len(errors) == len(calls)
        for error in errors:
            assert "was created before this process was forked" in error
        assert disposed == "no error"
        assert (await session.prompt("hello")).stop_reason == "end_turn"


async def test_a_forked_child_gets_a_clear_error_of_a_store_that_is_in_use(tmp_path: Path) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "x.db")
    unused = SQLiteSessionPersistDriver(tmp_path / "y.db")
    await driver.list_sessions()
    async with SQLiteSink(tmp_path / "z.db") as sink:
        await sink.last_sequence("s")
        calls = [driver.list_sessions, lambda: sink.last_sequence("s"), driver.close]
        *errors, closed, own = _in_fork([*calls, unused.list_sessions])
        assert all("was opened before this process was forked" in error for error in errors), errors
        assert (closed, own) == ("no error", "no error")
        assert await sink.last_sequence("s") == 0
    assert (await driver.list_sessions()).items == []
    await driver.close()
    await unused.close()


# A server such as gunicorn --preload imports the application, and with it the client, and then forks.
PRELOADED = """
import asyncio, os, sys
from sandbox_agent import SandboxAgent, local

loop = asyncio.new_event_loop()

async def start():
    sdk = await SandboxAgent.start(sandbox=local(log="silent"))
    return sdk, await sdk.create_session(agent="mock")

sdk, session = loop.run_until_complete(start())

async def serve():
    for call in (lambda: session.prompt("hello"), sdk.destroy_sandbox):
        try:
            await call()
        except Exception as error:
            print(type(error).__name__, error, flush=True)
    async with SandboxAgent.start(sandbox=local(log="silent")) as own:
        other = await own.create_session(agent="mock")
        print((await other.prompt("hello")).stop_reason, flush=True)
        await own.destroy_sandbox()

for worker in range(2):
    if os.fork() == 0:
        asyncio.run(serve())
        sys.exit()
    os.wait()
print((loop.run_until_complete(session.prompt("hello"))).stop_reason, flush=True)
loop.run_until_complete(sdk.destroy_sandbox())
"""


def test_a_client_that_was_preloaded_is_refused_in_each_worker_and_works_in_the_master() -> None:
    done = subprocess.run([sys.executable, "-c", PRELOADED], capture_output=True, text=True, timeout=60)
    refused = "SandboxAgentError this SandboxAgent was created before this process was forked"
    lines = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert lines == [refused, refused, "end_turn"] * 2 + ["end_turn"], done.stderr
    assert done.stderr == ""


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


@pytest.mark.parametrize("wrapped", [False, True])
async def test_mcp_servers_may_be_those_of_a_configuration_file(sdk: SandboxAgent, wrapped: bool) -> None:
    servers: dict[str, Any] = {
        "files": {"command": "npx", "args": ["-y", "server-files"], "env": {"A": "1"}},
        "web": {"url": "http://x", "headers": {"X": "2"}},
    }
    session = await sdk.create_session(
        agent="mock", mcp_servers={"mcpServers": servers} if wrapped else servers
    )
    assert (session.record.session_init or {})["mcpServers"] == [
        {
            "name": "files",
            "command": "npx",
            "args": ["-y", "server-files"],
            "env": [{"name": "A", "value": "1"}],
        },
        {"type": "http", "name": "web", "url": "http://x", "headers": [{"name": "X", "value": "2"}]},
    ]


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ({"mcpServers": []}, "mcp_servers.'mcpServers'. must be a dict of servers by name, not list"),
        ({"files": "npx"}, "mcp_servers.'files'. must be a dict"),
        ({"files": {"comand": "npx"}}, "mcp_servers.'files'.: unknown member 'comand'"),
    ],
)
async def test_a_configuration_of_mcp_servers_that_is_wrong_is_refused(
    sdk: SandboxAgent, servers: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        await sdk.create_session(agent="mock", mcp_servers=servers)


@pytest.mark.parametrize(
    "prompt",
    [[], (), b"text", 1, None, ["text"], [1], [None], [{}], [{"text": "x"}], [{"type": 1}], {"type": "text"}],
)
async def test_a_prompt_without_content_blocks_is_a_type_error_here(sdk: SandboxAgent, prompt: Any) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(TypeError, match=r"^(a prompt|prompt.0.) "):
        await session.prompt(prompt)
    with pytest.raises(TypeError, match=r"^(a prompt|prompt.0.) "):
        session.stream(prompt)
    with pytest.raises(TypeError, match=r"^(a prompt|prompt.0.) "):
        await sdk.sessions.post_message("any", prompt)
    sent = [event.payload.get("method") for event in (await sdk.get_events(session_id=session.id)).items]
    assert "session/prompt" not in sent


async def test_a_prompt_may_be_typed_blocks(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    await session.prompt([TextContent(text="echo typed"), {"type": "text", "text": " and dicts"}])
    events = (await sdk.get_events(session_id=session.id)).items
    (sent,) = [
        event.payload["params"]["prompt"]
        for event in events
        if event.payload.get("method") == "session/prompt"
    ]
    assert sent == [{"type": "text", "text": "echo typed"}, {"type": "text", "text": " and dicts"}]


async def test_the_events_of_an_unknown_session_raise(sdk: SandboxAgent) -> None:
    with pytest.raises(SessionNotFoundError):
        await sdk.get_events(session_id="nothing")
    session = await sdk.create_session(agent="mock")
    assert await sdk.get_events(session_id=session.id, cursor="1000") == ListPage([])


async def test_a_missing_token_names_the_argument(tmp_path: Path) -> None:
    with our_server(tmp_path, token="a-token-for-the-tests") as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            with pytest.raises(TokenInvalidError, match=r"pass token=…") as info:
                await sdk.list_agents()
    assert "header" not in str(info.value)
    assert "Authorization" in (info.value.problem or {})["detail"]
