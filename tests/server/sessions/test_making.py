"""Sessions are made whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.errors import (
    AgentNotInstalledError,
    AgentProcessExitedError,
    ConflictError,
    InvalidRequestError,
    ModeNotSupportedError,
    RequestTimeoutError,
    SandboxAgentError,
    ServerSessionNotFoundError,
    SessionAlreadyExistsError,
    StreamError,
    UnsupportedAgentError,
)
from sandbox_agent.server.agents.registry import AgentRegistry
from sandbox_agent.wire.sessions import CreateSessionRequest, PermissionRule
from tests.server.sessions.stack import Stack, running
from tests.support.servers import put_launcher

pytestmark = pytest.mark.anyio


async def assert_nothing_is_left(stack: Stack) -> None:
    """No session and no agent is there."""
    assert await stack.store.sessions(limit=10) == ([], None)
    assert stack.bridge.live() == []


async def test_a_session_is_made_with_all_its_settings(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        native = await stack.create(
            agent_mode="plan", model="mock-fast", variant="high", directory=str(tmp_path), title="T"
        )
        row = (await stack.recorder.open("s")).row
        assert (row.agent_mode, row.model, row.variant) == ("plan", "mock-fast", "high")
        assert (row.title, row.directory, row.managed, row.ended) == ("T", str(tmp_path), True, False)
        assert row.native_session_id == native
        assert row.permission_mode == "ask"


async def test_a_session_is_told_what_its_agent_chose_where_nothing_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        row = (await stack.recorder.open("s")).row
        assert (row.agent_mode, row.model, row.variant) == ("default", "mock", "medium")


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"agent": "nobody"}, UnsupportedAgentError, "nobody"),
        ({"agent": "amp"}, AgentNotInstalledError, "not installed"),
        ({"agent_mode": "fly"}, ModeNotSupportedError, "acceptEdits, plan"),
        ({"permission_mode": "fly"}, ModeNotSupportedError, "permissionMode"),
        ({"model": "gpt-0"}, InvalidRequestError, "mock, mock-fast"),
        ({"variant": "huge"}, InvalidRequestError, "low, medium, high"),
        ({"model": " "}, InvalidRequestError, "model is empty"),
        ({"directory": "/does/not/exist"}, InvalidRequestError, "directory"),
        ({"directory": "relative"}, InvalidRequestError, "absolute"),
        ({"directory": "/a\0b"}, InvalidRequestError, "directory"),
    ],
)
async def test_what_can_not_be_used_is_refused_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    error: type[SandboxAgentError],
    told: str,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    async with running(tmp_path) as stack:
        with pytest.raises(error, match=told):
            await stack.create(**given)
        await assert_nothing_is_left(stack)


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", "\x7f", "\ud800"])
async def test_a_name_that_can_not_be_used_is_refused(tmp_path: Path, name: str) -> None:
    async with running(tmp_path) as stack:
        with pytest.raises(InvalidRequestError, match="printable"):
            await stack.create(name)
        await assert_nothing_is_left(stack)


async def test_a_name_with_blanks_slashes_and_letters_of_all_kinds_can_be_used(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        name = "ä/b c?" + "é" * 250
        await stack.create(name)
        assert (await stack.over(await stack.say("echo x", name), name)).state == "done"


async def test_sessions_created_at_once_with_one_id_and_one_request_are_one(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        natives: list[str] = []
        refused: list[str] = []

        async def create(**given: Any) -> None:
            try:
                natives.append(await stack.create(mcp_servers=[SERVER], **given))
            except SessionAlreadyExistsError as error:
                refused.append(str(error))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(create)
        assert len(natives) == 3
        assert len(set(natives)) == 1
        await create(title="another")
        assert len(stack.bridge.live()) == len(refused) == 1
        assert "created with another request" in refused[0]
        assert await stack.types() == ["session.started"]


SERVER: dict[str, Any] = {
    "name": "files",
    "command": "true",
    "args": [],
    "env": [{"name": "KEY", "value": "secret"}],
}


async def test_the_same_request_returns_the_session_also_after_a_restart(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "agent_mode": "plan",
        "permission_timeout_seconds": 3.0,
        "permission_rules": [PermissionRule(reply="allow", kind="read")],
        "mcp_servers": [SERVER],
    }
    async with running(tmp_path) as stack:
        native = await stack.create(**given)
        await stack.over(await stack.say("echo hello"))
        assert await stack.create(**given) == native
    async with running(tmp_path) as stack:
        assert await stack.create(**given) == native
        with pytest.raises(SessionAlreadyExistsError, match="another request"):
            await stack.create(permission_timeout_seconds=4.0)
        assert stack.bridge.live() == []


async def test_a_session_that_was_terminated_is_not_created_again(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        await stack.sessions.terminate("s")
        with pytest.raises(SessionAlreadyExistsError, match="was terminated"):
            await stack.create()


async def test_a_request_that_failed_can_be_sent_again(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match="gpt-0"):
                await stack.create(key="k", model="gpt-0")
        await stack.create(key="k")


async def test_the_same_idempotency_key_returns_the_session_that_it_created(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        natives: set[str] = set()

        async def create(name: str) -> None:
            natives.add(await stack.create(name, key="k"))

        async with anyio.create_task_group() as tasks:
            for name in ("one", "two", "two"):  # such as a client that chooses an id for each try
                tasks.start_soon(create, name)
        assert len(natives) == 1
        (row,) = (await stack.store.sessions(limit=10))[0]
    async with running(tmp_path) as stack:
        request = CreateSessionRequest(agent="mock")
        response = await stack.sessions.create("three", request, idempotency_key="k")
        assert (response.session_id, response.native_session_id) == (row.session_id, natives.pop())
        with pytest.raises(ConflictError, match="the idempotency key 'k' was used"):
            await stack.create("three", key="k", title="another")
        with pytest.raises(ConflictError, match="the idempotency key 'k' was used"):
            await stack.create(row.session_id, key="k", title="another")
        await stack.create("three", key="another key")
        assert len((await stack.store.sessions(limit=10))[0]) == 2


async def test_a_creation_that_is_withdrawn_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_launcher(tmp_path / "data", "silent", [sys.executable, "-c", "import sys; sys.stdin.read()"])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    async with running(tmp_path) as stack:
        withdraw = stack.sessions.withdraw
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(withdraw, "s", "k")
                with pytest.raises(ConflictError, match="withdrawn"):  # while its agent starts
                    await stack.create(agent="silent", key="k")
        await assert_nothing_is_left(stack)
        with pytest.raises(ConflictError, match="withdrawn"):  # it arrives after its withdrawal
            await stack.create(key="k")
        await assert_nothing_is_left(stack)
        await stack.create(key="other")
        await withdraw("s", "k")  # it is another creation's
        assert [row.session_id for row in (await stack.store.sessions(limit=10))[0]] == ["s"]
        await withdraw("s", "other")  # it was created, and the response was lost
        await assert_nothing_is_left(stack)


async def test_a_session_that_is_being_made_takes_nothing_yet(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        seen = anyio.Event()

        async def meddle() -> None:
            with anyio.fail_after(10):
                while not seen.is_set():
                    try:
                        await stack.say("echo early")
                    except ConflictError as error:
                        assert "being created" in str(error)  # noqa: PT017 - it may also not be there yet
                        seen.set()
                    except ServerSessionNotFoundError:
                        await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meddle)
            await stack.create()
        assert len(stack.bridge.live()) == 1
        assert (await stack.over(await stack.say("echo now"))).state == "done"


_REFUSES = """
import json, sys
for line in sys.stdin:
    body = {"result": {}}
    if "session/new" in line:
        body = {"error": {"code": -32000, "message": "log in"}}
    print(json.dumps({"jsonrpc": "2.0", "id": json.loads(line)["id"], **body}), flush=True)
"""
_NAMELESS = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"jsonrpc": "2.0", "id": json.loads(line)["id"], "result": {}}), flush=True)
"""
AGENTS = {
    "dies": ("import sys; sys.exit('no way')", AgentProcessExitedError, "exit"),
    "silent": ("import sys; sys.stdin.read()", RequestTimeoutError, "initialize"),
    "refuses": (_REFUSES, StreamError, "refused session/new: Authentication required: log in"),
    "nameless": (_NAMELESS, StreamError, "without a sessionId"),
}


@pytest.mark.parametrize("agent", list(AGENTS))
async def test_an_agent_that_makes_no_session_is_ended_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    script, error, told = AGENTS[agent]
    (tmp_path / "agent.py").write_text(script)
    put_launcher(tmp_path / "data", agent, [sys.executable, str(tmp_path / "agent.py")])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    async with running(tmp_path, request_timeout=0.5) as stack:
        with pytest.raises(error, match=told):
            await stack.create(agent=agent)
        await assert_nothing_is_left(stack)
        await stack.create(agent="mock")  # the name is free


async def test_an_agent_that_does_not_tell_its_options_is_listed_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sandbox_agent.server.agents.registry.PROBE_SECONDS", 0.2)
    put_launcher(tmp_path, "silent", [sys.executable, "-c", "import sys; sys.stdin.read()"])
    async with running(tmp_path) as stack:
        with anyio.fail_after(15):
            info = await AgentRegistry(stack.bridge).get("silent", config=True, no_cache=False)
        assert info.config_error == "silent did not open a session in 0.2 s"
        assert stack.bridge.live() == []
