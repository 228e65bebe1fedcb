"""``sandbox-agent demo``: a session survives a server that is killed in the middle of a turn."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import httpx2
import msgspec

from sandbox_agent.cli.completion import complete_agents
from sandbox_agent.cli.event_printer import EventPrinter
from sandbox_agent.cli.logs import configure_logging
from sandbox_agent.cli.output import Screen
from sandbox_agent.cli.prompts import ReadProgress
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.permissions import PermissionRequest
from sandbox_agent.client.session import Session
from sandbox_agent.engine.permissions import PermissionReply
from sandbox_agent.engine.restore.load_phase import OPENING_METHODS, PRESENT_UPDATES
from sandbox_agent.engine.sse import SseDecoder
from sandbox_agent.errors import AgentProcessExitedError, ConnectionLostError
from sandbox_agent.persist.private import make_private_folder
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.persist.transfer.history import read_events
from sandbox_agent.providers.local import local
from sandbox_agent.wire.acp import AgentMessageChunk
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.records import SessionEvent

# Stored events reach a reader within milliseconds, and a server starts within seconds.
_READ_TIMEOUT: Final = 60.0
_REAP_INTERVAL: Final = 0.02
# Shorter than the server's, so that no request is sent on a connection that is being closed.
_LIMITS: Final = httpx2.Limits(max_connections=None, keepalive_expiry=2.0)
# Requests whose responses belong to the connection and not to a session.
_HANDSHAKE: Final = frozenset({"initialize", "authenticate"})


class _Script(NamedTuple):
    """The prompts. The server is killed after ``kill_after`` text chunks of ``long``."""

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


@click.command()
@click.option(
    "--agent",
    "-a",
    default="mock",
    metavar="ID",
    shell_complete=complete_agents,
    help="The built-in agent, or an installed one: claude, codex, ...",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the stores and the agent's files. Default: a new temporary folder.",
)
def demo(*, agent: str, folder: Path | None) -> None:
    """Show that a session survives a killed server.

    Starts a server, runs a turn, kills the server with SIGKILL in the middle of another turn, starts it
    again and continues the session. Then compares the events that the server sent, that are stored, and
    that a reader received. The exit code is 1 if they differ.
    """
    # The SDK warns about what the killed server lost. Here that is intended.
    configure_logging("error", "text")
    folder = Path(tempfile.mkdtemp(prefix="sandbox-agent-demo-")) if folder is None else folder.absolute()
    raise SystemExit(asyncio.run(_Demo(agent.strip() or "mock", folder).run()))


class _Demo:
    def __init__(self, agent: str, folder: Path) -> None:
        self._agent = agent
        self._script = _MOCK if agent == "mock" else _REAL
        self._work = folder / "work"
        self._store = folder / "sessions.db"
        self._provider = local(store=f"sqlite:{folder / 'server.db'}", log=folder / "server.log")
        self._server = ""
        self._screen = Screen(sys.stdout, sys.stdout)
        self._printer = EventPrinter(self._screen)
        self._wires: list[_RecordingTransport] = []
        self._seen: list[SessionEvent] = []
        self._progress = ReadProgress()
        self._reading: asyncio.Task[None] | None = None
        self._kill_after = 0

    async def run(self) -> int:
        make_private_folder(self._work)
        self._server = await self._provider.create()
        try:
            session_id = await self._start_session()
            await self._continue_session(session_id)
        finally:
            await self._provider.destroy(self._server)
        return await self._compare(session_id)

    async def _start_session(self) -> str:
        self._print_heading(
            f"A server with a SQLite store, a session with the agent '{self._agent}', a prompt"
        )
        async with self._connect() as sdk:
            session = await sdk.create_session(
                agent=self._agent, cwd=str(self._work), permission_policy=self._allow
            )
            self._reading = asyncio.create_task(self._read(session))
            await self._prompt(sdk, session, self._script.work)
            self._print_heading("A longer turn; the server is killed in the middle of it")
            self._kill_after = self._script.kill_after
            try:
                await self._prompt(sdk, session, self._script.long)
            except (ConnectionLostError, AgentProcessExitedError) as error:
                self._screen.note(f"the prompt failed: {error}", "red")
                await asyncio.wait_for(self._progress.catch_up(sdk, session), _READ_TIMEOUT)
            else:
                self._screen.note("the turn ended before the server was killed", "red")
                await self._kill_server()
        return session.id

    async def _continue_session(self, session_id: str) -> None:
        self._print_heading("A new client, which has only the store, continues the session")
        async with self._connect() as sdk:
            session = await sdk.resume_session(session_id, permission_policy=self._allow)
            self._reading = asyncio.create_task(self._read(session))
            await self._prompt(sdk, session, self._script.after)

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[SandboxAgent]:
        driver = SQLiteSessionPersistDriver(self._store)
        wire = _RecordingTransport()
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
            if self._reading is not None:
                # The session of a disposed client ends the iteration.
                await asyncio.wait_for(self._reading, _READ_TIMEOUT)
        finally:
            await driver.close()

    async def _read(self, session: Session) -> None:
        async for event in session.events(after=self._progress.index):
            self._seen.append(event)
            self._printer.print_event(event)
            if self._kill_after and isinstance(event.update, AgentMessageChunk) and event.update.text:
                self._kill_after -= 1
                if self._kill_after == 0:
                    await self._kill_server()
            self._progress.advance(event.event_index)

    async def _prompt(self, sdk: SandboxAgent, session: Session, text: str) -> None:
        self._screen.note(f"> {text}", "bold")
        response = await session.prompt(text)
        await asyncio.wait_for(self._progress.catch_up(sdk, session), _READ_TIMEOUT)
        self._screen.note(f"the turn ended: {response.stop_reason}", "dim")

    async def _allow(self, request: PermissionRequest) -> PermissionReply:
        title = request.tool_call.get("title") or "a tool call"
        self._screen.note(f"permission  {title}: allowed once, by the demo", "yellow")
        return "once"

    async def _kill_server(self) -> None:
        pid = self._pid()
        self._screen.note(f"SIGKILL to the server, process {pid}", "red")
        os.kill(pid, signal.SIGKILL)
        while self._pid() == pid:
            await self._provider.ensure_server(self._server)
            await asyncio.sleep(_REAP_INTERVAL)
        self._screen.note(f"the server was started again, process {self._pid()}", "yellow")

    def _pid(self) -> int:
        pid = self._provider.pid(self._server)
        assert pid is not None
        return pid

    def _print_heading(self, text: str) -> None:
        self._screen.note(f"\n== {text}", "bold")

    async def _compare(self, session_id: str) -> int:
        driver = SQLiteSessionPersistDriver(self._store)
        try:
            stored = [event async for event in read_events(driver, session_id)]
        finally:
            await driver.close()
        sent = [line for wire in self._wires for line in wire.session_lines()]
        self._print_heading("The agent's events in this session, from both servers")
        self._screen.note(f"sent   {len(sent):>6}  by the servers on their event streams")
        self._screen.note(f"stored {len(_agent_lines(stored)):>6}  in {self._store}")
        self._screen.note(f"seen   {len(_agent_lines(self._seen)):>6}  by a reader of session.events()")
        self._screen.note("Events that the killed server had not sent are not counted.", "dim")
        if not events_agree(sent, stored, self._seen):
            self._screen.note("They differ: events were lost, repeated or reordered.", "red")
            return 1
        self._screen.note("Equal, byte for byte and in order: nothing lost, nothing repeated.", "green")
        command = f"sandbox-agent sessions show {session_id} --store {self._store}"
        self._screen.note(f"Transcript: {command}", "dim")
        return 0


def events_agree(sent: Sequence[bytes], stored: Sequence[SessionEvent], seen: Sequence[SessionEvent]) -> bool:
    """Return whether the agent's events are the same in all three and the stored indexes have no gap."""
    has_no_gap = [event.event_index for event in stored] == list(range(1, len(stored) + 1))
    return has_no_gap and list(sent) == _agent_lines(stored) == _agent_lines(seen)


def _agent_lines(events: Sequence[SessionEvent]) -> list[bytes]:
    return [event.payload_json for event in events if event.sender == "agent"]


class _Head(msgspec.Struct):
    id: msgspec.Raw = msgspec.Raw()
    method: str | None = None
    params: dict[str, object] = {}


_decode_head = msgspec.json.Decoder(_Head).decode


class _RecordingTransport(httpx2.AsyncHTTPTransport):
    """Keeps a copy of each event of the event streams, by the id that the server gave it."""

    def __init__(self) -> None:
        super().__init__(limits=_LIMITS)
        self._lines: dict[tuple[str, str | None], bytes] = {}
        self._handshakes: set[tuple[str, bytes]] = set()
        # The number of lines before each request that opens a session again, by path and request id.
        self._openings: dict[tuple[str, bytes], int] = {}

    def session_lines(self) -> list[bytes]:
        """Return the envelopes that belong to a session, in their order, without a retold history."""
        retold = {key for opening, first in self._openings.items() for key in self._retold(opening, first)}
        return [
            line
            for (path, event_id), line in self._lines.items()
            if (path, event_id) not in retold and self._has_session(path, line)
        ]

    def _retold(self, opening: tuple[str, bytes], first: int) -> list[tuple[str, str | None]]:
        """Return the updates by which an agent that opens a session again retells its history."""
        found: list[tuple[str, str | None]] = []
        has_user_message = False
        for (path, event_id), line in list(self._lines.items())[first:]:
            head = _decode_head(line)
            if head.method is None and (path, bytes(head.id)) == opening:
                break
            kind = members(head.params.get("update")).get("sessionUpdate")
            if path == opening[0] and head.method == "session/update" and kind not in PRESENT_UPDATES:
                found.append((path, event_id))
                has_user_message = has_user_message or kind == "user_message_chunk"
        return found if has_user_message else []

    def _has_session(self, path: str, line: bytes) -> bool:
        head = _decode_head(line)
        if head.method is None:
            return (path, bytes(head.id)) not in self._handshakes
        return "sessionId" in head.params

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request, and record the response if it is an event stream."""
        if request.method == "POST":
            head = _decode_head(await request.aread())
            if head.method in _HANDSHAKE:
                self._handshakes.add((request.url.path, bytes(head.id)))
            elif head.method in OPENING_METHODS:
                self._openings[request.url.path, bytes(head.id)] = len(self._lines)
        response = await super().handle_async_request(request)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            response.stream = _RecordedStream(response.stream, request.url.path, self._lines)
        return response


class _RecordedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, path: str, lines: dict[tuple[str, str | None], bytes]) -> None:
        self._stream = stream
        self._path = path
        self._lines = lines

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        decoder = SseDecoder()
        async for chunk in self._stream:
            for event in decoder.feed(chunk):
                if event.event == "message":
                    self._lines[self._path, event.id] = event.data
            yield chunk

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()
