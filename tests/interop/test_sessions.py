"""One scenario, both SDKs, both servers: what the published ones do works with ours on either side."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent
from tests.interop.conftest import AGENT_PROCESS, PUBLISHED, RunningServer
from tests.interop.pairs import BOTH_SDKS, EVERY_PAIR
from tests.interop.peers import PYTHON, TYPESCRIPT, Peer, PeerError, open_peer
from tests.interop.seen import chunks, indexes, text_of

pytestmark = pytest.mark.anyio


async def answer_permission(peer: Peer, session_id: str, number: int, reply: str) -> None:
    """Prompt for a tool that needs permission and answer the request."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.prompt, session_id, "permission")
        permission = await peer.seen.permission(session_id, number)
        assert permission["availableReplies"] == ["once", "always", "reject"]
        assert permission["toolCall"]["title"] == "Write hello.txt"
        await peer.respond(permission, reply)


@EVERY_PAIR
async def test_an_sdk_runs_a_whole_session_when_the_server_is_the_other_sides(
    sdk: str, server: RunningServer, tmp_path: Path
) -> None:
    async with open_peer(sdk, tmp_path / "sessions.db") as peer:
        await peer.connect(server.url)
        record = await peer.create(server.agent, cwd=str(tmp_path))
        session_id = record["id"]
        init = dict(record["sessionInit"])
        if sdk == PYTHON:
            # The settings that the user chose: none so far.
            assert init.pop("_meta") == {"sandbox-agent": {"version": 1, "chosen": {}}}
        assert init == {"cwd": str(tmp_path), "mcpServers": []}

        assert await peer.prompt(session_id, "echo héllo, wörld 👋") == "end_turn"
        await peer.seen.says(session_id, "héllo, wörld 👋")

        assert (await peer.modes(session_id))["currentModeId"] == "default"
        defaults = {"mode": "default", "model": "mock", "thought_level": "medium"}
        assert await peer.options(session_id) == defaults
        await peer.setting(session_id, "mode", "plan")
        await peer.setting(session_id, "model", "mock-fast")
        await peer.setting(session_id, "thought_level", "high")
        assert (await peer.modes(session_id))["currentModeId"] == "plan"
        chosen = {"mode": "plan", "model": "mock-fast", "thought_level": "high"}
        assert await peer.options(session_id) == chosen
        await peer.option(session_id, "thought_level", "low")
        assert (await peer.options(session_id))["thought_level"] == "low"

        await answer_permission(peer, session_id, 1, "once")
        await peer.seen.says(session_id, "Permission granted (allow_once)")
        await answer_permission(peer, session_id, 2, "reject")
        await peer.seen.says(session_id, "Permission rejected (reject_once)")

        stored = await peer.events(session_id)
        assert indexes(stored) == list(range(1, len(stored) + 1))
        assert indexes(peer.seen.events[session_id]) == sorted(indexes(peer.seen.events[session_id]))
        prompts = [
            event["payload"]["params"]["prompt"][-1]["text"]
            for event in stored
            if event["payload"].get("method") == "session/prompt"
        ]
        assert prompts == ["echo héllo, wörld 👋", "permission", "permission"]
        assert text_of(stored) == text_of(peer.seen.events[session_id])
        asked = [
            event["sender"] for event in stored if "method" in event["payload"] and "id" in event["payload"]
        ]
        assert asked.count("agent") == 2

        destroyed = await peer.destroy(session_id)
        assert destroyed["destroyedAt"] >= destroyed["createdAt"]
        assert await peer.sessions() == [session_id]
        assert server.leftovers.find(AGENT_PROCESS)
        await peer.dispose()
        await server.leftovers.gone(AGENT_PROCESS)


@EVERY_PAIR
async def test_an_sdk_names_the_error_when_a_setting_is_unknown(sdk: str, server: RunningServer) -> None:
    async with open_peer(sdk) as peer:
        await peer.connect(server.url)
        session_id = (await peer.create(server.agent))["id"]
        with pytest.raises(PeerError) as value:
            await peer.setting(session_id, "model", "gpt-99")
        assert value.value.name == "UnsupportedSessionValueError"
        with pytest.raises(PeerError) as option:
            await peer.option(session_id, "nonsense", "1")
        assert option.value.name == "UnsupportedSessionConfigOptionError"
        assert await peer.prompt(session_id, "echo still here") == "end_turn"
        await peer.dispose()


@pytest.mark.parametrize("server", [PUBLISHED], indirect=True)
async def test_our_sdk_ends_the_agent_of_the_published_server(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="sandbox_agent.client"):
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            await sdk.create_session(agent=server.agent)
    assert "was not closed" not in caplog.text
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        assert await sdk.list_acp_servers() == []


@EVERY_PAIR
async def test_an_sdk_resumes_a_session_when_the_server_was_killed_in_a_turn(
    sdk: str, server: RunningServer, tmp_path: Path
) -> None:
    async with open_peer(sdk, tmp_path / "sessions.db") as peer:
        await peer.connect(server.url)
        first = await peer.create(server.agent, cwd=str(tmp_path))
        session_id = first["id"]
        assert await peer.prompt(session_id, "echo the secret word is marmalade") == "end_turn"
        await peer.seen.says(session_id, "marmalade")

        async with anyio.create_task_group() as tasks:
            lose = lose_prompt if sdk == PYTHON else wait_for_ever
            tasks.start_soon(lose, peer, session_id, "stream 2000 20")
            await peer.seen.says(session_id, "000002 ")
            await anyio.to_thread.run_sync(server.restart)
            if sdk == TYPESCRIPT:
                tasks.cancel_scope.cancel()

        await peer.connect(server.url)
        resumed = await peer.resume(session_id)
        # Ours goes on in the agent's own session, the published one makes another.
        assert (resumed["agentSessionId"] == first["agentSessionId"]) is (sdk == PYTHON)
        assert await peer.prompt(session_id, "echo what was it?") == "end_turn"
        await peer.seen.says(session_id, "what was it?")

        *before, said = server.told(resumed["agentSessionId"])
        assert "the secret word is marmalade" in before[0]
        assert said == "echo what was it?"
        if sdk == PYTHON:
            # The agent was cut off, and is told the answer that it has not kept.
            assert len(before) == 3
            assert "Assistant: 000001 000002" in before[2]
            assert "marmalade" not in before[2]
        else:
            assert len(before) == 1
        stored = await peer.events(session_id)
        assert indexes(stored) == list(range(1, len(stored) + 1))
        assert text_of(stored).startswith("the secret word is marmalade000001 000002 ")
        assert text_of(stored).endswith("what was it?")
        await peer.dispose()
        await server.leftovers.gone(AGENT_PROCESS)


async def lose_prompt(peer: Peer, session_id: str, text: str) -> None:
    """Prompt, and see it fail as the server goes away."""
    with pytest.raises(PeerError) as lost:
        await peer.prompt(session_id, text)
    assert lost.value.name == "ConnectionLostError"


async def wait_for_ever(peer: Peer, session_id: str, text: str) -> None:
    """Prompt; the published SDK's promise is neither kept nor broken when the server goes away."""
    await peer.prompt(session_id, text)
    raise AssertionError("the turn was longer than this test")


@BOTH_SDKS
async def test_an_sdk_sees_every_event_in_order_when_the_agent_bursts(
    sdk: str, server: RunningServer, tmp_path: Path
) -> None:
    count = 5_000
    async with open_peer(sdk, tmp_path / "sessions.db") as peer:
        await peer.connect(server.url)
        session_id = (await peer.create(server.agent))["id"]
        assert await peer.prompt(session_id, f"burst {count} 200") == "end_turn"
        await peer.seen.says(session_id, f"{count:06d} ")
        numbers = [int(text[:6]) for text in chunks(peer.seen.events[session_id])]
        assert numbers == list(range(1, count + 1))
        stored = await peer.events(session_id)
        assert indexes(stored) == list(range(1, len(stored) + 1))
        assert [int(text[:6]) for text in chunks(stored)] == numbers
        await peer.dispose()


@pytest.mark.parametrize("others", [TYPESCRIPT, PYTHON])
async def test_two_sdks_get_their_own_events_when_they_share_a_server(
    others: str, server: RunningServer
) -> None:
    async with open_peer(TYPESCRIPT) as one, open_peer(others) as two:
        ids: list[str] = []
        for peer in (one, two):
            await peer.connect(server.url)
            ids.append((await peer.create(server.agent))["id"])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.prompt, ids[0], "burst 200 50")
            tasks.start_soon(two.prompt, ids[1], "burst 300 50")
        await one.seen.says(ids[0], "000200 ")
        await two.seen.says(ids[1], "000300 ")
        assert (len(chunks(one.seen.events[ids[0]])), len(chunks(two.seen.events[ids[1]]))) == (200, 300)
        assert list(one.seen.events) == [ids[0]]
        assert list(two.seen.events) == [ids[1]]
        assert len(await one.connections()) == 2
        await one.dispose()
        assert len(await two.connections()) == 1
        assert await two.prompt(ids[1], "echo still here") == "end_turn"
        await two.dispose()
        await server.leftovers.gone(AGENT_PROCESS)


@BOTH_SDKS
async def test_an_sdk_lists_the_agents_when_the_server_is_ours(sdk: str, server: RunningServer) -> None:
    async with open_peer(sdk) as peer:
        await peer.connect(server.url)
        agents = await peer.agents()
        assert {"claude", "codex", "opencode", "amp", "pi", "cursor", "mock"} <= agents.keys()
        assert agents["mock"]["installed"] is True
        assert [option["id"] for option in agents["mock"]["configOptions"]] == [
            "mode",
            "model",
            "thought_level",
        ]
        await peer.dispose()
