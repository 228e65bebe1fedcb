"""The two SDKs behind one face, so that one scenario runs on both: plain dicts, named as on the wire."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.abc
import msgspec

from sandbox_agent import (
    InMemorySessionPersistDriver,
    PermissionRequest,
    SandboxAgent,
    Session,
    SessionEvent,
    SessionPersistDriver,
    SQLiteSessionPersistDriver,
)
from tests.interop.seen import Event, Seen
from tests.support.npm import BETTER_SQLITE, PUBLISHED_SDK, npm_or_skip

__all__ = ["PYTHON", "TYPESCRIPT", "Peer", "PeerError", "open_peer"]

TYPESCRIPT, PYTHON = "typescript", "python"
SCRIPT = Path(__file__).parents[1] / "support/node/sdk_peer.mjs"
# The longest single call of a scenario.
CALL_SECONDS = 60.0
PAGE = 1_000


class PeerError(Exception):
    """A call of the SDK failed; ``name`` is the class of its error, the same in both SDKs."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class Peer(Protocol):
    """An SDK, its store and one client at a time on it.

    Attributes:
        seen: what the listeners of its sessions were called with.
    """

    seen: Seen

    async def connect(self, base_url: str, *, token: str | None = None) -> None:
        """Make a new client on the same store; the one before is left as it is."""
        ...

    async def create(self, agent: str, **request: Any) -> dict[str, Any]:
        """Create a session and listen to it; returns its record."""
        ...

    async def resume(self, session_id: str) -> dict[str, Any]:
        """Resume a session and listen to it; returns its record."""
        ...

    async def record(self, session_id: str) -> dict[str, Any]:
        """Return the session's record, from the store."""
        ...

    async def sessions(self) -> list[str]:
        """Return the ids of the stored sessions."""
        ...

    async def events(self, session_id: str) -> list[Event]:
        """Return all the session's stored events."""
        ...

    async def prompt(self, session_id: str, text: str) -> str:
        """Prompt; returns the stop reason."""
        ...

    async def setting(self, session_id: str, what: str, value: str) -> None:
        """Set the "mode", "model" or "thought_level"."""
        ...

    async def option(self, session_id: str, config_id: str, value: str) -> None:
        """Set a config option by its id."""
        ...

    async def options(self, session_id: str) -> dict[str, str]:
        """Return each config option's current value by its id."""
        ...

    async def modes(self, session_id: str) -> dict[str, Any]:
        """Return the session's modes."""
        ...

    async def respond(self, permission: dict[str, Any], reply: str) -> None:
        """Answer a permission request."""
        ...

    async def connections(self) -> list[str]:
        """Return the server's live connections."""
        ...

    async def agents(self) -> dict[str, dict[str, Any]]:
        """Return the server's agents by id, with their config options."""
        ...

    async def destroy(self, session_id: str) -> dict[str, Any]:
        """Destroy a session; returns its record."""
        ...

    async def dispose(self) -> None:
        """Dispose the client."""
        ...


@contextlib.asynccontextmanager
async def open_peer(sdk: str, file: Path | None = None) -> AsyncGenerator[Peer]:
    """Give an SDK with its sessions in an SQLite file, or in memory; its store is closed at the end."""
    opened = _open_typescript(file) if sdk == TYPESCRIPT else _open_python(file)
    async with opened as peer:
        yield peer


@contextlib.asynccontextmanager
async def _open_typescript(file: Path | None) -> AsyncGenerator[Peer]:
    command = ["node", str(SCRIPT), str(npm_or_skip(PUBLISHED_SDK, "compatibility with the published SDK"))]
    if file is not None:
        command.append(str(npm_or_skip(BETTER_SQLITE, "one SQLite file under both SDKs")))
    # Its stderr is the test's: what the SDK complains about is in a failure's report.
    async with (
        await anyio.open_process(command, stdin=subprocess.PIPE, stderr=sys.stderr.fileno()) as process,
        anyio.create_task_group() as tasks,
    ):
        peer = TypeScriptPeer(process, file)
        tasks.start_soon(peer.read)
        try:
            yield peer
            await peer.call("close")
            assert process.stdin is not None
            await process.stdin.aclose()
            with anyio.fail_after(CALL_SECONDS):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
            tasks.cancel_scope.cancel()


class TypeScriptPeer:
    """The published SDK in a node process; calls and answers are lines of JSON."""

    def __init__(self, process: anyio.abc.Process, file: Path | None) -> None:
        self.seen = Seen()
        self._process = process
        self._file = str(file) if file else None
        self._answers: dict[int, dict[str, Any]] = {}
        self._waiting: dict[int, anyio.Event] = {}

    async def read(self) -> None:
        """Take what the process prints until it ends."""
        assert self._process.stdout is not None
        rest = b""
        async for received in self._process.stdout:
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.seen.take_event(message["event"])
        elif "permission" in message:
            self.seen.take_permission(message["permission"])
        else:
            self._answers[message["id"]] = message
            self._waiting[message["id"]].set()

    async def call(self, op: str, **args: Any) -> Any:
        """Run one of the script's operations and return its result."""
        number = len(self._waiting) + 1
        answered = self._waiting[number] = anyio.Event()
        given = {name: value for name, value in args.items() if value is not None}
        assert self._process.stdin is not None
        await self._process.stdin.send(json.dumps({"id": number, "op": op, "args": given}).encode() + b"\n")
        with anyio.fail_after(CALL_SECONDS):
            await answered.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise PeerError(answer["error"]["name"], answer["error"]["message"])
        return answer["result"]

    async def connect(self, base_url: str, *, token: str | None = None) -> None:
        await self.call("connect", baseUrl=base_url, token=token, file=self._file)

    async def create(self, agent: str, **request: Any) -> dict[str, Any]:
        return await self.call("createSession", agent=agent, **request)

    async def resume(self, session_id: str) -> dict[str, Any]:
        return await self.call("resumeSession", sessionId=session_id)

    async def record(self, session_id: str) -> dict[str, Any]:
        return await self.call("getSession", sessionId=session_id)

    async def sessions(self) -> list[str]:
        page = await self.call("listSessions")
        assert page.get("nextCursor") is None
        return [item["id"] for item in page["items"]]

    async def events(self, session_id: str) -> list[Event]:
        events: list[Event] = []
        cursor: str | None = None
        while True:
            page = await self.call("getEvents", sessionId=session_id, limit=PAGE, cursor=cursor)
            events += page["items"]
            cursor = page.get("nextCursor")
            if cursor is None:
                return events

    async def prompt(self, session_id: str, text: str) -> str:
        response = await self.call("prompt", sessionId=session_id, text=text)
        return response["stopReason"]

    async def setting(self, session_id: str, what: str, value: str) -> None:
        names = {"mode": "setMode", "model": "setModel", "thought_level": "setThoughtLevel"}
        await self.call(names[what], sessionId=session_id, value=value)

    async def option(self, session_id: str, config_id: str, value: str) -> None:
        await self.call("setConfigOption", sessionId=session_id, configId=config_id, value=value)

    async def options(self, session_id: str) -> dict[str, str]:
        options = await self.call("getConfigOptions", sessionId=session_id)
        return {option["id"]: option["currentValue"] for option in options}

    async def modes(self, session_id: str) -> dict[str, Any]:
        return await self.call("getModes", sessionId=session_id)

    async def respond(self, permission: dict[str, Any], reply: str) -> None:
        await self.call("respondPermission", permissionId=permission["id"], reply=reply)

    async def connections(self) -> list[str]:
        return [server["serverId"] for server in (await self.call("listAcpServers"))["servers"]]

    async def agents(self) -> dict[str, dict[str, Any]]:
        answer = await self.call("listAgents", config=True)
        return {agent["id"]: agent for agent in answer["agents"]}

    async def destroy(self, session_id: str) -> dict[str, Any]:
        return await self.call("destroySession", sessionId=session_id)

    async def dispose(self) -> None:
        await self.call("dispose")


@contextlib.asynccontextmanager
async def _open_python(file: Path | None) -> AsyncGenerator[Peer]:
    driver = SQLiteSessionPersistDriver(file) if file else InMemorySessionPersistDriver()
    peer = PythonPeer(driver)
    try:
        yield peer
    finally:
        await peer.dispose()
        await driver.close()


class PythonPeer:
    """Our SDK, in this process."""

    def __init__(self, driver: SessionPersistDriver) -> None:
        self.seen = Seen()
        self._driver = driver
        self._sdk: SandboxAgent | None = None
        self._held: dict[str, Session] = {}

    @property
    def sdk(self) -> SandboxAgent:
        """The client."""
        assert self._sdk is not None
        return self._sdk

    async def connect(self, base_url: str, *, token: str | None = None) -> None:
        if self._sdk is not None:
            await self._sdk.dispose()
        self._sdk = await SandboxAgent.connect(base_url=base_url, token=token, persist=self._driver)
        self._held.clear()
        assert (await self._sdk.get_health()).status == "ok"

    def _listen(self, session: Session) -> dict[str, Any]:
        if session.id not in self._held:
            self._held[session.id] = session
            session.on_event(lambda event: self.seen.take_event(_event(event)))
            session.on_permission_request(lambda request: self.seen.take_permission(_permission(request)))
        return msgspec.to_builtins(session.record)

    async def create(self, agent: str, **request: Any) -> dict[str, Any]:
        return self._listen(await self.sdk.create_session(agent=agent, **request))

    async def resume(self, session_id: str) -> dict[str, Any]:
        return self._listen(await self.sdk.resume_session(session_id))

    async def record(self, session_id: str) -> dict[str, Any]:
        return msgspec.to_builtins(await self._driver.get_session(session_id))

    async def sessions(self) -> list[str]:
        page = await self.sdk.list_sessions()
        assert page.next_cursor is None
        return [session.id for session in page.items]

    async def events(self, session_id: str) -> list[Event]:
        events: list[Event] = []
        cursor: str | None = None
        while True:
            page = await self.sdk.get_events(session_id=session_id, limit=PAGE, cursor=cursor)
            events += [_event(event) for event in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return events

    async def prompt(self, session_id: str, text: str) -> str:
        with _named_errors():
            response = await self._held[session_id].prompt(text)
        return str(response.stop_reason)

    async def setting(self, session_id: str, what: str, value: str) -> None:
        session = self._held[session_id]
        with _named_errors():
            if what == "mode":
                await session.set_mode(value)
            elif what == "model":
                await session.set_model(value)
            else:
                await session.set_thought_level(value)

    async def option(self, session_id: str, config_id: str, value: str) -> None:
        with _named_errors():
            await self._held[session_id].set_config_option(config_id, value)

    async def options(self, session_id: str) -> dict[str, str]:
        options = await self._held[session_id].get_config_options()
        return {option["id"]: option["currentValue"] for option in options}

    async def modes(self, session_id: str) -> dict[str, Any]:
        modes = await self._held[session_id].get_modes()
        assert modes is not None
        return modes

    async def respond(self, permission: dict[str, Any], reply: str) -> None:
        session = self._held[permission["sessionId"]]
        assert reply == "once" or reply == "always" or reply == "reject"
        await session.respond_permission(permission["id"], reply)

    async def connections(self) -> list[str]:
        return [server.server_id for server in await self.sdk.list_acp_servers()]

    async def agents(self) -> dict[str, dict[str, Any]]:
        return {agent.id: msgspec.to_builtins(agent) for agent in await self.sdk.list_agents(config=True)}

    async def destroy(self, session_id: str) -> dict[str, Any]:
        session = await self.sdk.destroy_session(session_id)
        return msgspec.to_builtins(session.record)

    async def dispose(self) -> None:
        if self._sdk is not None:
            await self._sdk.dispose()


@contextlib.contextmanager
def _named_errors() -> Any:
    try:
        yield
    except Exception as error:
        raise PeerError(type(error).__name__, str(error)) from error


def _event(event: SessionEvent) -> Event:
    return {
        "id": event.id,
        "eventIndex": event.event_index,
        "sessionId": event.session_id,
        "createdAt": event.created_at,
        "connectionId": event.connection_id,
        "sender": event.sender,
        "payload": event.payload,
    }


def _permission(request: PermissionRequest) -> dict[str, Any]:
    return {
        "id": request.id,
        "createdAt": request.created_at,
        "sessionId": request.session_id,
        "agentSessionId": request.agent_session_id,
        "availableReplies": request.available_replies,
        "options": request.options,
        "toolCall": request.tool_call,
        "rawRequest": request.raw_request,
    }
