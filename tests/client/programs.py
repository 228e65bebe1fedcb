"""Programs that drive a session and are killed, and what the server has recorded of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx2

from sandbox_agent import SessionEvent
from sandbox_agent.persist.store.view import sqlite_store_driver
from sandbox_agent.persist.transfer.history import read_events
from tests.client.checks import said
from tests.support.servers import ServerProcess

# Drives the session "s" and prints a line for every stored event.
PROGRAM = """
import asyncio, sys
from sandbox_agent import SandboxAgent

async def main(url, store, agent, *prompts):
    async with SandboxAgent.connect(base_url=url, persist=store) as sdk:
        policies = {"permission_policy": "ask", "question_policy": "ask"}
        session = await sdk.create_session(agent=agent, id="s", cwd="/tmp", **policies)
        session.on_event(lambda event: print(event.event_index, flush=True))
        for prompt in prompts:
            if prompt.startswith("mode "):
                await session.set_mode(prompt.removeprefix("mode "))
            elif prompt == "answer":
                async def answer(request):
                    await asyncio.sleep(0.002)
                    await session.respond_permission(request.id, "once")
                session.on_permission_request(answer)
            else:
                await session.prompt(prompt)
        print("done", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


class Program:
    """A process that runs the program."""

    def __init__(self, server: ServerProcess, store: str, *prompts: str, agent: str = "mock") -> None:
        self._start(PROGRAM, server.url, store, agent, *prompts)

    @classmethod
    def running(cls, code: str, *arguments: str) -> Program:
        """Start other code, which prints a line for every stored event, too."""
        program = cls.__new__(cls)
        program._start(code, *arguments)
        return program

    def _start(self, code: str, *arguments: str) -> None:
        command = [sys.executable, "-c", code, *arguments]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid: int = self._child.pid

    def wait_stored(self, events: int) -> None:
        """Wait until the program has stored so many events, or has done everything."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.strip() == "done" or int(line) >= events:
                return
        raise AssertionError("the program has failed")

    def kill(self) -> None:
        """End the program as the system does when memory is full."""
        self._child.send_signal(signal.SIGKILL)
        self._child.wait(10)
        assert self._child.stdout is not None
        self._child.stdout.close()


def _is_notice(event: SessionEvent) -> bool:
    return str(event.payload.get("method")).startswith("_sandbox_agent/")


def envelopes(events: list[SessionEvent], agent_session_id: str) -> dict[str, list[Any]]:
    """Return what each side sent in an agent session, from session/new on."""
    created = next(
        event
        for event in events
        if event.sender == "agent" and agent_session_id in str(event.payload.get("result"))
    )
    request_id = created.payload["id"]
    start = next(
        position
        for position, event in enumerate(events)
        if event.payload.get("id") == request_id and event.payload.get("method") == "session/new"
    )
    sent: dict[str, list[Any]] = {"client": [], "agent": []}
    unsent = [
        each.payload["params"]["id"] for each in events if b"_sandbox_agent/not_sent" in each.payload_json
    ]
    for event in events[start:]:
        if not _is_notice(event) and not (event.sender == "client" and event.payload.get("id") in unsent):
            sent[event.sender].append(event.payload)
    return sent


async def server_events(folder: Path, agent_session_id: str, last_text: str) -> list[SessionEvent]:
    """Return what the server has recorded of a session, once it has the answer to the last prompt."""
    reader = sqlite_store_driver(folder / "server.db")
    assert reader is not None
    try:
        with anyio.fail_after(20):
            while True:
                for record in (await reader.list_sessions(limit=100)).items:
                    if record.agent_session_id == agent_session_id:
                        events = [event async for event in read_events(reader, record.id)]
                        is_done = "stopReason" in str(events[-1].payload.get("result"))
                        if is_done and last_text in said(events):
                            return events
                await anyio.sleep(0.01)
    finally:
        await reader.close()


async def agents(server: ServerProcess) -> int:
    """Return how many agents the server runs."""
    async with httpx2.AsyncClient() as http:
        return len((await http.get(f"{server.own_url}/v1/acp")).json()["servers"])
