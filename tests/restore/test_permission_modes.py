"""One vocabulary of permissions: modes, replies and policies, before and after a restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    InvalidRequestError,
    ModeNotSupportedError,
    PermissionPolicy,
    PermissionRequest,
    SandboxAgent,
)
from sandbox_agent.engine.permissions import (
    PermissionMode,
    agent_mode_of,
    check_agreement,
    permission_mode_of,
)
from sandbox_agent.server.permissions.policies import check_policy
from sandbox_agent.wire.sessions import CreateSessionRequest
from tests.restore.agent_server import AgentServer
from tests.server.sessions.stack import running

pytestmark = pytest.mark.anyio

ALL = "allow_once allow_always reject_once"
CLAUDE = ["auto", "default", "acceptEdits", "plan"]
CODEX = ["read-only", "workspace-write", "agent", "agent-full-access"]


@pytest.mark.parametrize(
    ("agent", "mode", "listed", "expected"),
    [
        ("claude", "ask", CLAUDE, "default"),
        ("claude", "accept_edits", CLAUDE, "acceptEdits"),
        ("claude", "allow", CLAUDE, "default"),
        ("claude", "allow", [*CLAUDE, "bypassPermissions"], "bypassPermissions"),
        ("claude", "read_only", CLAUDE, "default"),
        ("codex", "ask", CODEX, "read-only"),
        ("codex", "allow", CODEX, "agent-full-access"),
        ("copilot", "plan", ["https://x/modes#agent", "https://x/modes#plan"], "https://x/modes#plan"),
        ("opencode", "ask", ["build", "plan", "ask"], "ask"),
        ("opencode", "accept_edits", ["build", "plan", "ask"], "ask"),
        ("opencode", "allow", ["build", "plan", "ask"], "ask"),
        ("opencode", "read_only", ["build", "plan", "ask"], "ask"),
        ("other", "plan", ["build", "plan"], "plan"),
        ("other", "ask", ["build", "plan"], None),
        ("other", "ask", [], None),
    ],
)
def test_a_permission_mode_stands_for_a_mode_of_the_agent(
    agent: str, mode: PermissionMode, listed: list[str], expected: str | None
) -> None:
    assert agent_mode_of(agent, mode, listed) == expected


@pytest.mark.parametrize(
    ("agent", "agent_mode", "mode", "agree"),
    [
        ("claude", "default", "ask", True),
        ("claude", "default", "read_only", True),
        ("claude", "acceptEdits", "ask", False),
        ("claude", "auto", "ask", False),
        ("opencode", "build", "ask", False),
        ("opencode", "plan", "allow", False),
        ("codex", "agent-full-access", "read_only", False),
    ],
)
def test_a_mode_that_contradicts_the_permission_mode_is_refused(
    agent: str, agent_mode: str, mode: PermissionMode, agree: bool
) -> None:
    if agree:
        check_agreement(agent, agent_mode, mode)
    else:
        with pytest.raises(ValueError, match="contradicts the permission mode"):
            check_agreement(agent, agent_mode, mode)


@pytest.mark.parametrize("mode", ["ask", "accept_edits", "plan", "read_only"])
async def test_an_agent_that_never_asks_is_refused_where_it_would_have_to(mode: PermissionMode) -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("answers default")
    with anyio.fail_after(20):
        async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
            with pytest.raises(ValueError, match="pi never asks for permission"):
                await sdk.create_session(agent="pi", permission_mode=mode)
            session = await sdk.create_session(agent="pi", permission_mode="allow")
            with pytest.raises(ValueError, match="pi never asks for permission"):
                await session.set_permission_mode(mode)
            other = await sdk.create_session(agent="stub", id="s", permission_mode=mode)
            with pytest.raises(ValueError, match="pi never asks for permission"):
                await sdk.resume_session("s", agent="pi")
            assert other.agent == "stub"
    with pytest.raises(InvalidRequestError, match="pi never asks for permission"):
        check_policy(CreateSessionRequest(agent="pi", permission_mode=mode))


def test_the_meaning_of_an_agents_mode_is_known_or_none() -> None:
    assert permission_mode_of("claude", "acceptEdits") == "accept_edits"
    assert permission_mode_of("codex", "read-only") == "ask"
    assert permission_mode_of("claude", "auto") is None
    assert permission_mode_of("other", "yolo") == "allow"
    assert permission_mode_of("other", None) is None


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("read_only", "edit", "reject_once"),
        ("read_only", "execute", "reject_once"),
        ("accept_edits", "edit", "allow_once"),
        ("allow", "execute", "allow_once"),
        ("ask", "edit", "allow_always"),
        ("plan", "edit", "allow_always"),
        ("accept_edits", "execute", "allow_always"),
        ("read_only", "read", "allow_always"),
    ],
)
async def test_the_mode_decides_before_a_listener_also_after_a_restore(
    mode: PermissionMode, kind: str, expected: str
) -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("answers default")
    with anyio.fail_after(20):
        async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
            await sdk.create_session(agent="stub", id="s", permission_mode=mode)
        async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
            session = await sdk.resume_session("s")
            assert session.permission_mode == mode
            session.on_permission_request(lambda asked: session.respond_permission(asked.id, "always"))
            await session.prompt(f"ask {kind} {ALL}")
            assert server.outcomes == [expected]


@pytest.mark.parametrize(
    ("policy", "kind", "options", "expected"),
    [
        ("once", "edit", ALL, "allow_once"),
        ("always", "edit", ALL, "allow_always"),
        ("allow_once", "edit", ALL, "allow_once"),
        ("allow_always", "edit", ALL, "allow_always"),
        ("reject", "edit", ALL, "reject_once"),
        ("allow", "edit", ALL, "allow_once"),
        ("accept_edits", "edit", ALL, "allow_once"),
        ("read_only", "edit", ALL, "reject_once"),
        ("read_only", "edit", "allow_once", "cancelled"),
        ("once", "edit", "reject_once", "cancelled"),
        (None, "edit", ALL, "cancelled"),
    ],
)
async def test_a_policy_is_a_mode_or_a_reply_and_outlives_the_program(
    policy: PermissionPolicy | None, kind: str, options: str, expected: str
) -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("answers default")
    with anyio.fail_after(20):
        async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
            await sdk.create_session(agent="stub", id="s", permission_policy=policy)
        async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
            session = await sdk.resume_session("s")
            await session.prompt(f"ask {kind} {options}")
            assert server.outcomes == [expected]


async def test_allow_without_an_option_to_allow_asks_the_listener() -> None:
    server, asked = AgentServer("answers default"), list[PermissionRequest]()
    with anyio.fail_after(20):
        async with SandboxAgent.connect(transport=server) as sdk:
            session = await sdk.create_session(agent="stub", permission_mode="allow")

            def answer(request: PermissionRequest) -> Any:
                asked.append(request)
                return session.respond_permission(request.id, "reject")

            session.on_permission_request(answer)
            await session.prompt("ask edit reject_once")
            assert len(asked) == 1
            assert server.outcomes == ["reject_once"]


async def test_the_permission_mode_can_be_changed_and_sets_the_agents_mode() -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("modes of claude")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        session = await sdk.create_session(agent="claude", id="s")
        assert session.permission_mode is None
        await session.set_permission_mode("ask")
        assert ((await session.get_modes()) or {})["currentModeId"] == "default"
        with pytest.raises(ValueError, match="contradicts the permission mode"):
            await session.set_mode("acceptEdits")
        await session.set_permission_mode("accept_edits")
        assert ((await session.get_modes()) or {})["currentModeId"] == "acceptEdits"
        with pytest.raises(ValueError, match="permission_mode must be one of"):
            await session.set_permission_mode(cast("PermissionMode", "yolo"))
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        session = await sdk.resume_session("s")
        await session.prompt("on")
        assert session.permission_mode == "accept_edits"
    assert [prompt["mode"] for prompt in server.prompts] == ["acceptEdits"]


async def test_a_mode_that_means_something_is_shown_as_the_permission_mode() -> None:
    async with SandboxAgent.connect(transport=AgentServer("modes of claude")) as sdk:
        session = await sdk.create_session(agent="claude", mode="plan")
        assert session.permission_mode == "plan"
        with pytest.raises(ValueError, match="contradicts the permission mode"):
            await sdk.create_session(agent="claude", mode="plan", permission_mode="ask")


async def test_a_server_session_takes_the_same_modes(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        with pytest.raises(InvalidRequestError, match="contradicts the permission mode"):
            await stack.create("s", agent="mock", agent_mode="plan", permission_mode="accept_edits")
        with pytest.raises(ModeNotSupportedError, match="read_only"):
            await stack.create("s", agent="mock", permission_mode="yolo")
        for number, (given, agent_mode) in enumerate(
            [
                ("plan", "plan"),
                ("accept_edits", "acceptEdits"),
                ("acceptEdits", "acceptEdits"),
                ("default", "default"),
                ("read_only", "default"),
                ("reject", "default"),
            ]
        ):
            await stack.create(f"s{number}", agent="mock", permission_mode=given)
            row = (await stack.recorder.open(f"s{number}")).row
            assert (row.permission_mode, row.agent_mode) == (given, agent_mode)
