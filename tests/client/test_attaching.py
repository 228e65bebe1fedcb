"""The next program takes the place of one that was killed: nothing is lost, and one agent goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent import (
    SandboxAgent,
    SQLiteSessionPersistDriver,
)
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

# Prints a line for every stored event.
PROGRAM = """
import asyncio, sys
from sandbox_agent import SandboxAgent

async def main(url, store, *prompts):
    async with SandboxAgent.connect(base_url=url, persist=store) as sdk:
        session = await sdk.create_session(agent="mock", id="s", cwd="/tmp", permission_policy="ask")
        session.on_event(lambda event: print(event.event_index, flush=True))
        for prompt in prompts:
            if prompt.startswith("mode "):
                await session.set_mode(prompt.removeprefix("mode "))
            else:
                await session.prompt(prompt)
        print("done", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


class Program:
    """A program that drives the session "s"."""

    def __init__(self, server: ServerProcess, store: Path, *prompts: str) -> None:
        command = [sys.executable, "-c", PROGRAM, server.url, str(store), *prompts]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def kill_after(self, events: int) -> None:
        """Kill the program when it has stored so many events."""
        assert self._child.stdout is not None
        with self._child.stdout as output:
            for line in output:
                if line.strip() == "done" or int(line) >= events:
                    break
        self._child.send_signal(signal.SIGKILL)
        self._child.wait(10)


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with our_server(tmp_path) as running:
        yield running


@asynccontextmanager
async def client(server: ServerProcess, store: Path) -> AsyncGenerator[SandboxAgent]:
    """A client with a driver of its own, as another process has."""
    driver = SQLiteSessionPersistDriver(store)
    try:
        async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
            yield sdk
    finally:
        await driver.close()


async def envelopes(sdk: SandboxAgent) -> list[tuple[str, Any]]:
    events = (await sdk.get_events(session_id="s", limit=100_000)).items
    return [
        (event.sender, event.payload)
        for event in events
        if not str(event.payload.get("method")).startswith("_sandbox_agent/")
    ]


async def test_x(server: ServerProcess, tmp_path: Path) -> None:
    program = Program(server, tmp_path / "client.db", "echo one", "stream 400 5")
    program.kill_after(20)
    import time

    async with client(server, tmp_path / "client.db") as sdk:
        t = time.monotonic()
        session = await sdk.resume_session("s")
        print("resumed", time.monotonic() - t)
        turn = session.turn
        assert turn is not None
        print(await turn)
        for e in await envelopes(sdk):
            print(e[0], str(e[1])[:150])
