"""What goes wrong or happens at once, on both SDKs and both servers."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.interop.conftest import OURS, PUBLISHED, RunningServer
from tests.interop.pairs import BOTH_SDKS, EVERY_PAIR
from tests.interop.peers import PYTHON, Peer, PeerError, open_peer
from tests.interop.seen import Event, chunks, indexes, text_of
from tests.support.servers import our_server

pytestmark = pytest.mark.anyio


@EVERY_PAIR
async def test_an_sdk_keeps_two_sessions_apart_when_they_share_a_connection(
    sdk: str, server: RunningServer, tmp_path: Path
) -> None:
    async with open_peer(sdk, tmp_path / "sessions.db") as peer:
        await peer.connect(server.url)
        records: list[dict[str, str]] = []

        async def create() -> None:
            records.append(await peer.create(server.agent, cwd=str(tmp_path)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(create)
            tasks.start_soon(create)
        assert len(await peer.connections()) == 1
        ids = [record["id"] for record in records]
        assert len({record["agentSessionId"] for record in records}) == 2
        async with anyio.create_task_group() as tasks:
            for number, session_id in enumerate(ids, 1):
                tasks.start_soon(peer.prompt, session_id, f"burst {number}00 30")
        for number, session_id in enumerate(ids, 1):
            last = number * 100
            await peer.seen.says(session_id, f"{last:06d} ")
            stored = await peer.events(session_id)
            assert [int(text[:6]) for text in chunks(stored)] == list(range(1, last + 1))
            assert indexes(stored) == list(range(1, len(stored) + 1))
        await peer.dispose()


@EVERY_PAIR
async def test_an_sdk_ends_a_running_turn_when_its_session_is_destroyed(
    sdk: str, server: RunningServer
) -> None:
    async with open_peer(sdk) as peer:
        await peer.connect(server.url)
        session_id = (await peer.create(server.agent))["id"]
        reasons: list[str] = []

        async def prompt() -> None:
            reasons.append(await peer.prompt(session_id, "stream 100000 20"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prompt)
            await peer.seen.says(session_id, "000001 ")
            await peer.destroy(session_id)
        assert reasons == ["cancelled"]
        assert (await peer.record(session_id))["destroyedAt"] is not None
        await peer.dispose()


@pytest.mark.parametrize("knows", [True, False], ids=["knows it", "has forgotten it"])
@pytest.mark.parametrize("server", [OURS, PUBLISHED], indirect=True)
async def test_our_sdk_restores_the_session_when_the_agent_died(server: RunningServer, knows: bool) -> None:
    # The published SDK's prompt never ends then, on either server.
    async with open_peer(PYTHON) as peer:
        await peer.connect(server.url)
        first = await peer.create(server.agent)
        session_id = first["id"]
        await peer.prompt(session_id, "echo before")
        with pytest.raises(PeerError) as died:
            await peer.prompt(session_id, "die 3")
        assert died.value.name == "AgentProcessExitedError"
        if not knows:
            (server.spoken / f"{first['agentSessionId']}.jsonl").unlink()
        assert await peer.prompt(session_id, "echo after") == "end_turn"
        second = await peer.record(session_id)
        *before, said = server.told(second["agentSessionId"])
        if knows:
            assert second["agentSessionId"] == first["agentSessionId"]
            assert before[:2] == ["echo before", "die 3"]
            # What the agent said before it died it has not kept.
            (untold,) = before[2:]
            assert "echo before" not in untold
            assert "I am about to die." in untold
        else:
            (replay,) = before
            assert "echo before" in replay
        assert said == "echo after"
        assert text_of(await peer.events(session_id)) == "beforeI am about to die.after"
        await peer.dispose()


@BOTH_SDKS
async def test_an_sdk_goes_on_when_the_agent_writes_garbage(sdk: str, server: RunningServer) -> None:
    # The published server ends the agent at the first line that is not UTF-8.
    async with open_peer(sdk) as peer:
        await peer.connect(server.url)
        session_id = (await peer.create(server.agent))["id"]
        assert await peer.prompt(session_id, "garbage") == "end_turn"
        await peer.seen.says(session_id, "That was garbage.")
        assert await peer.prompt(session_id, "echo still here") == "end_turn"
        await peer.seen.says(session_id, "still here")
        await peer.dispose()


@BOTH_SDKS
async def test_an_sdk_gets_in_when_it_has_the_token(sdk: str, tmp_path: Path) -> None:
    token = "a-token-for-this-test"
    with our_server(tmp_path, token=token) as process:
        async with open_peer(sdk) as peer:
            await peer.connect(process.url, token=token)
            session_id = (await peer.create("mock"))["id"]
            assert await peer.prompt(session_id, "echo let in") == "end_turn"
            await peer.seen.says(session_id, "let in")
            await peer.dispose()
    assert token not in process.log.read_text()


@BOTH_SDKS
async def test_a_client_sees_what_was_stored_when_its_turn_ends(
    sdk: str, server: RunningServer, tmp_path: Path
) -> None:
    async with open_peer(sdk, tmp_path / "sessions.db") as peer:
        await peer.connect(server.url)
        session_id = (await peer.create(server.agent, cwd=str(tmp_path)))["id"]
        await answer_every_permission(peer, session_id, "demo")
        await peer.seen.says(session_id, "This session is now called")
        await peer.dispose()
        kinds = update_kinds(await peer.events(session_id))
        assert {
            "agent_message_chunk",
            "agent_thought_chunk",
            "plan",
            "tool_call",
            "tool_call_update",
            "usage_update",
            "session_info_update",
        } <= set(kinds)
        assert kinds == update_kinds(peer.seen.events[session_id])


async def answer_every_permission(peer: Peer, session_id: str, text: str) -> None:
    """Prompt, and allow the one tool that the turn asks for, always."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.prompt, session_id, text)
        await peer.respond(await peer.seen.permission(session_id), "always")
    await peer.seen.says(session_id, "Permission granted (allow_always)")


def update_kinds(events: list[Event]) -> list[str]:
    """Return the kind of each session update, in order."""
    payloads = [event["payload"] for event in events]
    return [p["params"]["update"]["sessionUpdate"] for p in payloads if p.get("method") == "session/update"]
