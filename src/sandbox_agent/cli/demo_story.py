"""The demo: what happens, in its order, and the count at its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from sandbox_agent.cli.demo_count import Count
from sandbox_agent.cli.demo_reader import Reader
from sandbox_agent.cli.demo_wire import Wire
from sandbox_agent.cli.logs import configure_logging
from sandbox_agent.cli.narrate import Narrator
from sandbox_agent.cli.stored import read_events
from sandbox_agent.cli.terminal import Screen
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.permissions import PermissionRequest
from sandbox_agent.client.session import Session
from sandbox_agent.engine.permissions import PermissionReply
from sandbox_agent.errors import AgentProcessExitedError, ConnectionLostError
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.providers.local import local
from sandbox_agent.wire.acp import AgentMessageChunk
from sandbox_agent.wire.records import SessionEvent

__all__ = ["tell_story"]


# A killed process is gone a moment later.
_REAP_INTERVAL: Final = 0.02


class _Script(NamedTuple):
    """What is said to the agent; so many pieces of text into ``long`` the server is killed."""

    work: str
    long: str
    after: str
    kill_after: int


_MOCK: Final = _Script("demo", "stream 400 10", "echo Here I am again, in the same session.", 40)
_REAL: Final = _Script(
    "Create the file hello.txt in the current folder, with one line of greeting in it. Then say in one "
    "sentence what you did.",
    "Write a story of 600 words about a lighthouse. Use no tools.",
    "What was the very first thing that I asked you to do in this session? One sentence, no tools.",
    1,
)


async def tell_story(agent: str, folder: Path | None) -> int:
    """Run the demo and return the exit code: 0 if nothing was lost, else 1.

    Raises:
        SandboxAgentError: a step failed.
    """
    # The SDK warns of what the killed server took with it; here that is the plan.
    configure_logging("error", "text")
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="sandbox-agent-demo-"))
    story = _Story(agent, folder.absolute())
    return await story.tell()


class _Story:
    def __init__(self, agent: str, folder: Path) -> None:
        self._agent = agent
        self._script = _MOCK if agent == "mock" else _REAL
        self._work = folder / "work"
        self._store = folder / "sessions.db"
        self._screen = Screen(sys.stdout, sys.stdout)
        self._wires: list[Wire] = []
        self._narrator = Narrator(self._screen)
        self._reader = Reader(self._take)
        self._provider = local(store=f"sqlite:{folder / 'server.db'}", log=folder / "server.log")
        self._kill_in: int | None = None
        self._caught_up: Callable[[], Awaitable[None]] | None = None
        self._restart: asyncio.Future[None] | None = None
        self._server = ""

    async def tell(self) -> int:
        self._work.mkdir(parents=True, exist_ok=True)
        self._server = await self._provider.create()
        try:
            session_id = await self._first_life()
            await self._second_life(session_id)
        finally:
            await self._provider.destroy(self._server)
        return await self._count(session_id)

    async def _first_life(self) -> str:
        self._head(f"A server on a SQLite store, a session with the agent '{self._agent}', a prompt")
        async with self._client() as sdk:
            session = await sdk.create_session(
                agent=self._agent, cwd=str(self._work), permission_policy=self._allow
            )
            self._reader.follow(session)
            await self._prompt(sdk, session, self._script.work)
            self._head("A longer turn; the server is killed in the middle of it")
            self._kill_in = self._script.kill_after
            try:
                await self._prompt(sdk, session, self._script.long)
            except (ConnectionLostError, AgentProcessExitedError) as error:
                self._screen.note(f"the prompt failed: {error}", "red")
            else:
                self._screen.note("the turn was over before the server could be killed in it", "red")
                self._kill()
            if self._restart is not None:
                await self._restart
        return session.id

    async def _second_life(self, session_id: str) -> None:
        self._head("A new client, which has nothing but the store, goes on with the session")
        async with self._client() as sdk:
            session = await sdk.resume_session(session_id, permission_policy=self._allow)
            self._reader.follow(session)
            await self._prompt(sdk, session, self._script.after)

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncGenerator[SandboxAgent]:
        driver = SQLiteSessionPersistDriver(self._store)
        wire = Wire()
        self._wires.append(wire)
        try:
            async with SandboxAgent.start(
                sandbox=self._provider,
                sandbox_id=f"{self._provider.name}/{self._server}",
                persist=driver,
                transport=wire,
            ) as sdk:
                self._screen.note(f"server at {sdk.base_url}, process {self._pid()}", "dim")
                yield sdk
            await self._reader.end()
        finally:
            await driver.close()

    async def _prompt(self, sdk: SandboxAgent, session: Session, text: str) -> None:
        self._caught_up = lambda: self._reader.catch_up(sdk, session)
        self._screen.note(f"> {text}", "bold")
        response = await session.prompt(text)
        await self._reader.catch_up(sdk, session)
        self._screen.note(f"the turn ended: {response.stop_reason}", "dim")

    async def _allow(self, request: PermissionRequest) -> PermissionReply:
        if self._caught_up is not None:
            await self._caught_up()
        title = request.tool_call.get("title") or "a tool call"
        self._screen.note(f"permission  {title}: allowed once, by the demo", "yellow")
        return "once"

    def _take(self, event: SessionEvent) -> None:
        self._narrator.tell(event)
        if self._kill_in is None:
            return
        match event.update:
            case AgentMessageChunk() as chunk if chunk.text:
                self._kill_in -= 1
                if self._kill_in == 0:
                    self._kill()
            case _:
                pass

    def _kill(self) -> None:
        self._kill_in = None
        pid = self._pid()
        self._screen.note(f"SIGKILL to the server, process {pid}", "red")
        os.kill(pid, signal.SIGKILL)
        self._restart = asyncio.ensure_future(self._start_again(pid))

    async def _start_again(self, dead: int) -> None:
        while self._pid() == dead:
            await self._provider.ensure_server(self._server)
            await asyncio.sleep(_REAP_INTERVAL)
        self._screen.note(f"the server is started again, process {self._pid()}", "yellow")

    def _pid(self) -> int:
        pid = self._provider.pid(self._server)
        assert pid is not None
        return pid

    def _head(self, text: str) -> None:
        self._screen.note(f"\n== {text}", "bold")

    async def _count(self, session_id: str) -> int:
        driver = SQLiteSessionPersistDriver(self._store)
        try:
            kept = [event async for event in read_events(driver, session_id)]
        finally:
            await driver.close()
        sent = [line for wire in self._wires for line in wire.session_events()]
        count = Count.of(sent, kept, self._reader.seen)
        self._head("The count: what the agent said in this session, over both servers")
        for what, events, where in (
            ("sent", count.sent, "events that the servers put on their streams, taken from the wire"),
            ("stored", count.stored, f"in {self._store}"),
            ("seen", count.seen, "by a reader of session.events()"),
        ):
            self._screen.note(f"{what:<7}{len(events):>6}  {where}")
        self._screen.note(
            "What died with the server before it was on the wire was promised to no one and is in no count.",
            "dim",
        )
        if count.agrees:
            self._screen.note("Equal, byte for byte and in order: nothing lost, nothing twice.", "green")
            command = f"sandbox-agent sessions show {session_id} --store {self._store}"
            self._screen.note(f"Read it: {command}", "dim")
            return 0
        self._screen.note("They differ: events were lost, repeated or reordered.", "red")
        return 1
