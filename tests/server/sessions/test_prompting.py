"""A prompt is stored before the agent has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from sandbox_agent.persist.store import Changes
from sandbox_agent.wire.jsonrpc import read_head
from tests.server.sessions.stack import Stack, running

pytestmark = pytest.mark.anyio


PROBE = b'{"jsonrpc":"2.0","id":"probe","method":"_nothing"}'


class Gate:
    """Holds up what is recorded, while messages are taken as ever."""

    def __init__(self, stack: Stack) -> None:
        self.reached = anyio.Event()
        self.open = anyio.Event()
        self._commit = stack.store.commit

    async def commit(self, changes: Changes) -> None:
        if changes.envelopes:
            self.reached.set()
            await self.open.wait()
        await self._commit(changes)


@asynccontextmanager
async def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[Stack, Gate]]:
    async with running(tmp_path) as stack:
        await stack.create()
        await stack.over(await stack.say("echo before"))
        gate = Gate(stack)
        monkeypatch.setattr(stack.store, "commit", gate.commit)
        with anyio.fail_after(30):
            try:
                yield stack, gate
            finally:
                gate.open.set()


async def test_an_agent_gets_no_prompt_that_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gated(tmp_path, monkeypatch) as (stack, gate):
        [connection] = stack.bridge.live()
        turn = await stack.say("echo now")
        await gate.reached.wait()
        # an agent that has the prompt tells of it before it answers this
        await connection.send("probe", read_head(PROBE), PROBE)
        assert b"now" not in (await connection.read(0, "probe", max_bytes=2**20)).data
        assert (await stack.turn(turn)).state == "accepted"
        gate.open.set()
        assert (await stack.over(turn)).state == "done"
        assert b"now" in (await connection.read(0, "probe", max_bytes=2**20)).data


async def test_a_turn_that_is_cancelled_before_its_prompt_is_stored_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gated(tmp_path, monkeypatch) as (stack, gate):
        turn = await stack.say("stall")
        await gate.reached.wait()
        await stack.sessions.cancel("s")
        gate.open.set()
        assert (await stack.over(turn)).state == "cancelled"
        assert (await stack.over(await stack.say("echo after"))).state == "done"


async def test_a_session_is_terminated_before_a_prompt_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gated(tmp_path, monkeypatch) as (stack, gate):
        turn = await stack.say("stall")
        await gate.reached.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stack.sessions.terminate, "s")
            while stack.bridge.live():  # its agent ends, however long the store takes
                await anyio.lowlevel.checkpoint()
            gate.open.set()
        assert (await stack.turn(turn)).state in ("cancelled", "interrupted")
        assert (await stack.types())[-1] == "session.ended"


async def test_an_agent_that_dies_before_a_prompt_is_stored_ends_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gated(tmp_path, monkeypatch) as (stack, gate):
        [connection] = stack.bridge.live()
        turn = await stack.say("echo lost")
        await gate.reached.wait()
        await connection.stop()
        gate.open.set()
        assert (await stack.over(turn)).state in ("failed", "interrupted")
        assert (await stack.over(await stack.say("echo after"))).state == "done"
