"""A sandbox service on loopback. Its sandboxes are one folder of this machine; what they run is real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import anyio
import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

Recorded = tuple[str, str, Any]
Output = tuple[int, bytes, bytes]


@dataclass
class Box:
    """A sandbox.

    Attributes:
        metadata: What the client set.
        env: Its variables.
        is_paused: Whether its processes are stopped, or have ended.
        name: The name that the client chose.
        token: A secret of the sandbox, or the id of its session, if the service has one.
        port: The port that the service publishes.
        timeout: Seconds from its start to its end.
        home: Its home, once a command has named it.
        service: The command that the service starts with it.
        child: The process of this command.
        started: When it started.
    """

    metadata: dict[str, str]
    env: dict[str, str]
    is_paused: bool = False
    name: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    port: int = 0
    timeout: int = 0
    home: Path | None = None
    service: Sequence[str] = ()
    child: subprocess.Popen[bytes] | None = None
    started: float = field(default_factory=time.time)


@dataclass
class Failure:
    """What the API answers instead, so many times."""

    status: int
    times: int
    headers: dict[str, str] = field(default_factory=dict[str, str])


class LostResponseError(Exception):
    """A request had its effect, and a gateway answers with an error."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class FakeService(ABC):
    """A service, in a thread, whose sandboxes have their homes on this machine.

    A sandbox's home is where its start script is. Two at a time need homes and ports of their own.

    Attributes:
        requests: Method, path and JSON body of each request to the API, but for those to sandboxes.
        boxes: The sandboxes that exist.
        failures: By the name of the call: "create", "wake", "timeout", "destroy"; "created" for a sandbox
            that was created before the answer is an error.
        created: Set when a sandbox was created, before the response.
        may_respond: Cleared to delay this response.
        has_traffic: Whether requests reach the ports of sandboxes.
        has_script: Set when the start script has arrived.
    """

    # What the SDK sends as its credentials, by the name of the header in lower case.
    credentials: ClassVar[tuple[str, str]]
    # The WebSockets of uvicorn.
    ws: ClassVar[Literal["none", "websockets-sansio"]] = "none"

    def __init__(self, home: Path, programs: Path) -> None:
        self.home = home
        self.programs = programs
        self.requests: list[Recorded] = []
        self.boxes: dict[str, Box] = {}
        self.failures: dict[str, Failure] = {}
        self.created = threading.Event()
        self.may_respond = threading.Event()
        self.may_respond.set()
        self.has_traffic = True
        self.has_script = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._services: list[subprocess.Popen[bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            Starlette(routes=self.routes(), exception_handlers={LostResponseError: self._answer_lost}),
            log_level="warning",
            lifespan="off",
            ws=self.ws,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    @abstractmethod
    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes of the API."""

    def error(self, status: int, message: str) -> Response:
        """Return an error as the service does."""
        return JSONResponse({"code": status, "message": message}, status)

    def _answer_lost(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, LostResponseError)
        return self.error(error.status, "the connection to the service was lost")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_respond.set()
        self._server.should_exit = True
        self._server.force_exit = True
        for child in list(self._children):
            child.kill()
        self._thread.join()
        for child in self._services:
            self._end(child)
        self.kill_server()

    def kill_server(self, number: signal.Signals = signal.SIGKILL, home: Path | None = None) -> None:
        """Send a signal to the server in a home, if there is one. One that is killed then has ended."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int(((home or self.home) / ".sandbox-agent/server.pid").read_text())
            os.kill(pid, number)
            while number == signal.SIGKILL and not _has_ended(Path(f"/proc/{pid}")):
                time.sleep(0.001)

    async def recorded(self, request: Request) -> Any:
        """Record a request and return its body."""
        body = await request.body()
        data = json.loads(body) if body else None
        self.requests.append((request.method, request.url.path, data))
        return data

    def refusal(self, request: HTTPConnection, name: str = "", box: str | None = None) -> Response | None:
        """Return the error to answer with, if there is one."""
        failure = self.failures.get(name)
        if failure is not None and failure.times > 0:
            failure.times -= 1
            response = self.error(failure.status, f"made to fail with {failure.status}")
            response.headers.update(failure.headers)
            return response
        header, value = self.credentials
        if request.headers.get(header) != value:
            return self.error(401, "invalid API key")
        box = box or request.path_params.get("id")
        if box is not None and box not in self.boxes:
            return self.error(404, f"sandbox {box} not found")
        return None

    async def add(self, box_id: str, box: Box) -> None:
        """Create a sandbox, and wait until the response may be sent."""
        self.boxes[box_id] = box
        await asyncio.to_thread(self.home.mkdir, parents=True, exist_ok=True)
        self.created.set()
        # Not in a thread, which a client that leaves would not end.
        while not self.may_respond.is_set():  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.01)
        failure = self.failures.get("created")
        if failure is not None and failure.times > 0:
            failure.times -= 1
            raise self.native_error(failure.status)

    def native_error(self, status: int) -> Exception:
        """Return what a call raises that has had its effect and is answered with an error."""
        return LostResponseError(status)

    async def remove(self, box_id: str) -> None:
        """Destroy a sandbox."""
        box = self.boxes.pop(box_id)
        self._end(box.child)
        self.kill_server(home=box.home)
        await asyncio.to_thread(shutil.rmtree, box.home or self.home, True)

    async def run(self, box: Box, command: Sequence[str], stdin: bytes = b"") -> Output:
        """Run a command in a sandbox to its end. Not with asyncio: this loop is not the main thread's."""

        def run() -> Output:
            pipe = subprocess.PIPE
            child = subprocess.Popen(
                list(command),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                cwd=self.home,
                env=self._env(box, command),
            )
            self._children.add(child)
            out, err = child.communicate(stdin)
            self._children.discard(child)
            return child.returncode, out, err

        # The thread waits for the process also when the client is gone.
        return await asyncio.to_thread(run)

    def _env(self, box: Box, command: Sequence[str]) -> dict[str, str]:
        if found := re.search(r"(/\S+)/\.sandbox-agent/start\.sh", " ".join(command)):
            box.home = Path(found[1])
        return {"HOME": str(box.home or self.home), "PATH": f"{self.programs}:/usr/bin:/bin", **box.env}

    def start(self, box: Box, command: Sequence[str]) -> None:
        """Start a command that runs until the sandbox or this service ends."""
        self._end(box.child)
        box.child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.home,
            env=self._env(box, command),
            start_new_session=True,
        )
        self._services.append(box.child)

    def _end(self, child: subprocess.Popen[bytes] | None) -> None:
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    async def write(self, path: Path, content: bytes) -> None:
        """Write a file of a sandbox."""

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

        await asyncio.to_thread(write)
        if path.name == "start.sh":
            self.has_script.set()

    async def forward(self, request: Request, port: int, path: str | None = None) -> Response:
        """Pass a request on to a port of this machine, and the response back as it arrives."""
        if not self.has_traffic:
            return Response("the port is not open", 502)
        names = (b"host", b"connection")
        headers = [(name, value) for name, value in request.headers.raw if name not in names]
        client = httpx2.AsyncClient(timeout=None, trust_env=False)
        try:
            url = f"http://127.0.0.1:{port}{path or request.url.path}"
            url += f"?{request.url.query}" if request.url.query else ""
            sent = client.build_request(request.method, url, headers=headers, content=await request.body())
            response = await client.send(sent, stream=True)
        except httpx2.TransportError:
            await client.aclose()
            return Response("the port is not open", 502)

        async def parts() -> AsyncGenerator[bytes]:
            try:
                async for part in response.aiter_raw():
                    yield part
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
                    await client.aclose()

        answer = StreamingResponse(parts(), response.status_code)
        answer.raw_headers = [
            (name.lower(), value)
            for name, value in response.headers.raw
            if name.lower() not in (b"connection", b"transfer-encoding")
        ]
        return answer


def _has_ended(process: Path) -> bool:
    """Return whether a process and all of its threads have ended, and its sockets with them."""
    state = (process / "stat").read_text().rpartition(")")[2].split()[0]
    return state in "ZX" and len(list((process / "task").iterdir())) <= 1
