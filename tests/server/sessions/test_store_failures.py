"""A store that refuses: nothing that was acknowledged is lost, and it goes on by itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import pytest

from sandbox_agent.errors import PersistError
from tests.server.sessions.stack import running

pytestmark = pytest.mark.anyio


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Lock the store against its server, as a careless backup does."""
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_a_message_is_refused_while_the_store_is_locked_and_a_running_turn_is_not_lost(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turn = await stack.say("sleep 0.2")
        queued = await stack.say("echo after")
        await stack.until("turn.started")
        with locked(tmp_path), anyio.fail_after(30), pytest.raises(PersistError):
            await stack.say("echo refused", key="k")
        assert (await stack.over(turn)).state == "done"
        assert (await stack.over(queued)).state == "done"
        assert (await stack.over(await stack.say("echo taken", key="k"))).state == "done"
        assert [text for text in await stack.texts("user") if "refused" in text] == []
        numbers = [event["sequence"] for event in await stack.events()]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_an_agent_is_ended_also_while_the_store_is_locked(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        await stack.say("stall")
        await stack.until("turn.started")
        with locked(tmp_path), anyio.fail_after(30):
            with pytest.raises(PersistError):
                await stack.sessions.terminate("s")
            assert stack.bridge.live() == []
        with anyio.fail_after(30):
            live = await stack.recorder.open("s")
            await live.wait_beyond(live.row.last_sequence)  # it works again
        await stack.sessions.terminate("s")
        assert (await stack.recorder.open("s")).row.ended
        assert (await stack.types()).count("session.ended") == 1


@pytest.mark.soak
async def test_no_session_is_made_while_the_store_is_locked(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        with locked(tmp_path), anyio.fail_after(30):
            with pytest.raises(PersistError):
                await stack.create()
            assert stack.bridge.live() == []
        await stack.create()
