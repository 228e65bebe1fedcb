"""Sessions end: terminated, deleted, in the middle of whatever they do."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import ConflictError, ServerSessionNotFoundError
from sandbox_agent.wire.jsonrpc import dumps, loads, read_head
from tests.server.sessions.stack import Stack, running

pytestmark = pytest.mark.anyio


async def test_terminate_ends_the_agent_the_turns_and_the_session(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        stalled, waiting = await stack.say("stall"), await stack.say("echo never", key="k")
        await stack.until("turn.started")
        await stack.sessions.terminate("s")
        assert stack.bridge.live() == []
        interrupted = await stack.turn(stalled)
        assert (interrupted.state, interrupted.error) == ("interrupted", "terminated")
        assert (await stack.turn(waiting)).state == "cancelled"
        events = await stack.events()
        assert events[-1]["type"] == "session.ended"
        assert events[-1]["data"]["reason"] == "terminated"
        assert "error" not in await stack.types()  # that the agent exited is as it should be
        assert (await stack.recorder.open("s")).row.ended
        with pytest.raises(ConflictError, match="terminated"):
            await stack.say("echo more")
        assert (await stack.say("echo never", key="k")).turn_id == waiting.turn_id
        await stack.sessions.cancel("s")
        await stack.sessions.terminate("s")
        assert await stack.events() == events


async def test_terminate_at_once_by_many_ends_the_session_once(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(stack.sessions.terminate, "s")
        assert (await stack.types()).count("session.ended") == 1


async def test_terminate_ends_an_agent_that_ignores_everything(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        await stack.over(await stack.say("deaf"))
        await stack.say("stall")
        with anyio.fail_after(10):
            await stack.sessions.terminate("s")
        assert stack.bridge.live() == []


async def test_a_terminated_session_stays_so_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        await stack.sessions.terminate("s")
    async with running(tmp_path) as stack:
        with pytest.raises(ConflictError, match="terminated"):
            await stack.say("echo more")


async def test_a_delete_during_a_turn_erases_all_and_frees_the_name(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        await stack.say("stream 1000000 0")
        await stack.say("echo waits")
        await stack.until("item.delta", count=10)
        key = (await stack.recorder.open("s")).row.key
        with anyio.fail_after(20):
            await stack.sessions.delete("s")
        assert stack.bridge.live() == []
        assert await stack.store.sessions(limit=10) == ([], None)
        assert await stack.store.events(key, after=0, limit=10, max_bytes=1000) == []
        assert await stack.store.turns(key, limit=10) == []
        with pytest.raises(ServerSessionNotFoundError):
            await stack.say("echo gone")
        await stack.create()
        assert (await stack.over(await stack.say("echo anew"))).state == "done"
        assert (await stack.recorder.open("s")).row.key != key


async def test_a_delete_ends_the_viewers(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        live = await stack.recorder.open("s")
        ended = anyio.Event()

        async def view() -> None:
            await live.wait_beyond(10**9)
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(view)
            await stack.sessions.delete("s")
            with anyio.fail_after(5):
                await ended.wait()


async def other_session(stack: Stack) -> str:
    """A session that a client makes over ACP; returns its name."""
    connection = await stack.bridge.open("theirs", "mock")

    async def ask(method: str, params: object, number: int) -> dict[str, str]:
        line = dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        answer = await connection.send(UNNAMED, read_head(line), line)
        assert answer is not None
        result: dict[str, str] = loads(answer)["result"]
        return result

    await ask("initialize", {"protocolVersion": 1}, 1)
    await ask("session/new", {"cwd": "/", "mcpServers": []}, 2)
    with anyio.fail_after(10):
        while not (rows := (await stack.store.sessions(limit=10))[0]):
            await anyio.lowlevel.checkpoint()
    return rows[0].session_id


async def test_a_session_that_a_client_drives_can_be_deleted_and_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        name = await other_session(stack)
        for refused in (stack.sessions.cancel, stack.sessions.terminate):
            with pytest.raises(ConflictError, match="/v1/acp"):
                await refused(name)
        with pytest.raises(ConflictError, match="/v1/acp"):
            await stack.say("echo no", name)
        await stack.sessions.delete(name)
        assert await stack.store.sessions(limit=10) == ([], None)
        assert [each.server_id for each in stack.bridge.live()] == ["theirs"]


async def test_what_is_not_there_can_not_be_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        for end in (stack.sessions.cancel, stack.sessions.terminate, stack.sessions.delete):
            with pytest.raises(ServerSessionNotFoundError):
                await end("nobody")
