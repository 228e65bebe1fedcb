"""An agent or the warden that is stopped (SIGSTOP): what clients ask for still ends, and others go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from tests.chaos.chats import Chat, user_texts
from tests.chaos.test_store import health
from tests.runtime.children import gone
from tests.server.talk import client_of, talk
from tests.server.test_death import agent_of
from tests.support.servers import descendants, our_server

pytestmark = pytest.mark.anyio

SECONDS = 60


@contextmanager
def stopped(pid: int) -> Generator[None]:
    """Stop a process; at the end it continues, if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def _running(server_pid: int, module: bytes) -> list[int]:
    """Return the descendants of a server that run a module."""
    return [pid for pid in descendants(server_pid) if module in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.soak
async def test_a_turn_with_a_stopped_agent_can_be_cancelled_and_the_session_deleted(tmp_path: Path) -> None:
    with our_server(tmp_path, "--cancel-grace", "0.5") as server:
        async with client_of(server) as client:
            with anyio.fail_after(SECONDS):
                chat, other = Chat(client, "stopped"), Chat(client, "other")
                await chat.create()
                await chat.say("stream 1000 20")
                async with chat.stream() as watch:
                    await watch.until("item.delta")
                (agent,) = _running(server.pid, b"agents.mock")
                with stopped(agent):
                    await other.create()
                    await other.turn("echo others go on")
                    assert await health(chat) == {"status": "ok"}
                    answer = await client.post(f"{chat.path}/cancel")
                    assert answer.status_code == 204, answer.text
                    ended = (await chat.until("turn.ended"))["data"]
                    assert ended["metadata"]["stop_reason"] == "cancelled"
                    assert gone([agent])
                await chat.turn("echo after")  # by a new agent
                assert user_texts(await chat.events()) == ["stream 1000 20", "echo after"]
                for pid in _running(server.pid, b"agents.mock"):
                    os.kill(pid, signal.SIGSTOP)
                for each in (chat, other):
                    assert (await client.delete(each.path)).status_code == 204
                assert _running(server.pid, b"agents.mock") == []
                assert await health(chat) == {"status": "ok"}


async def test_a_connection_to_a_stopped_agent_is_closed_and_its_prompt_ends(tmp_path: Path) -> None:
    with our_server(tmp_path) as server, anyio.fail_after(SECONDS):
        async with talk(server) as talking:
            agent = agent_of(server)
            prompt = talking.start("stream 1000 20")
            async with talking.stream() as stream:
                await stream.until("agent_message_chunk")
                with stopped(agent):
                    assert (await talking.delete()).status_code == 204
                    assert gone([agent])
                await stream.rest()
            assert (await prompt).status_code == 500


@pytest.mark.soak
async def test_agents_go_on_and_new_ones_start_while_the_warden_is_stopped(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with client_of(server) as client:
            with anyio.fail_after(SECONDS):
                chat = Chat(client, "before")
                await chat.create()
                warden, *_ = _running(server.pid, b"warden_main")  # the others are its keepers
                with stopped(warden):
                    await chat.turn("echo goes on")
                    assert await health(chat) == {"status": "ok"}
                    created = await client.post("/v1/sessions/during", json={"agent": "mock"})
                    assert created.status_code == 200, created.text
                    await Chat(client, "during").turn("echo new")
                    for name in ("before", "during"):
                        assert (await client.delete(f"/v1/sessions/{name}")).status_code == 204
                    assert _running(server.pid, b"agents.mock") == []
        assert await anyio.to_thread.run_sync(server.stop) == 0
