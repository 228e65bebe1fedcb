"""E2B on loopback: its API and its envd, as its SDK uses them. Its sandboxes are folders of this machine."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import anyio
import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

API_KEY = "e2b_0123456789abcdef"
Recorded = tuple[str, str, Any]


@dataclass
class Box:
    """A sandbox.

    Attributes:
        metadata: What the client set.
        env: Its variables.
        is_paused: Whether its processes are stopped.
    """

    metadata: dict[str, str]
    env: dict[str, str]
    token: str
    is_paused: bool = False


@dataclass
class Failure:
    """What the API answers instead, so many times."""

    status: int
    times: int
    headers: dict[str, str] = field(default_factory=dict[str, str])


class FakeE2B:
    """E2B, in a thread, with one folder for the homes of all sandboxes.

    A sandbox's home is the same path for all: here there is one sandbox at a time.

    Attributes:
        requests: Method, path and JSON body of each request to the API.
        boxes: The sandboxes that exist.
        failures: By method and path, without the sandbox's id.
        created: Set when a sandbox was created, before the response.
        may_respond: Cleared to delay this response.
        has_traffic: Whether requests reach the ports of sandboxes.
        has_script: Set when the start script has arrived.
    """

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
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        routes = [
            Route("/v2/sandboxes", self._create, methods=["POST"]),
            Route("/v2/sandboxes/{id}/connect", self._connect, methods=["POST"]),
            Route("/sandboxes/{id}/connect", self._connect, methods=["POST"]),
            Route("/sandboxes/{id}/timeout", self._timeout, methods=["POST"]),
            Route("/sandboxes/{id}/pause", self._pause, methods=["POST"]),
            Route("/sandboxes/{id}", self._kill, methods=["DELETE"]),
            Route("/{path:path}", self._in_box, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    @property
    def client(self) -> dict[str, Any]:
        """The arguments of the SDK that lead here."""
        # HTTP/2 needs TLS.
        return {"api_key": API_KEY, "api_url": self.url, "sandbox_url": self.url, "http_version": "1.1"}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_respond.set()
        self.kill_server(signal.SIGKILL)
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()

    def kill_server(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the server in the sandbox, if there is one."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int((self.home / ".sandbox-agent/server.pid").read_text()), number)

    async def _recorded(self, request: Request) -> Any:
        body = await request.body()
        data = json.loads(body) if body else None
        self.requests.append((request.method, request.url.path, data))
        return data

    def _refusal(self, request: Request, name: str) -> Response | None:
        failure = self.failures.get(name)
        if failure is not None and failure.times > 0:
            failure.times -= 1
            content = {"code": failure.status, "message": f"made to fail with {failure.status}"}
            return JSONResponse(content, failure.status, failure.headers)
        if request.headers.get("X-API-KEY") != API_KEY:
            return JSONResponse({"code": 401, "message": "invalid API key"}, 401)
        box = request.path_params.get("id")
        if box is not None and box not in self.boxes:
            return JSONResponse({"code": 404, "message": f"sandbox {box} not found"}, 404)
        return None

    async def _create(self, request: Request) -> Response:
        body = await self._recorded(request)
        if (refusal := self._refusal(request, "create")) is not None:
            return refusal
        box_id = f"i{secrets.token_hex(8)}"
        self.boxes[box_id] = Box(body["metadata"], body["envVars"], secrets.token_hex(8))
        self.home.mkdir(parents=True, exist_ok=True)
        self.created.set()
        await asyncio.to_thread(self.may_respond.wait)
        return JSONResponse(self._described(box_id), 201)

    def _described(self, box_id: str) -> dict[str, Any]:
        return {
            "sandboxID": box_id,
            "templateID": "base",
            "clientID": "deprecated",
            "envdVersion": "0.6.7",
            "envdAccessToken": self.boxes[box_id].token,
            "trafficAccessToken": "may-pass",
            "domain": "e2b.app",
        }

    async def _connect(self, request: Request) -> Response:
        await self._recorded(request)
        if (refusal := self._refusal(request, "connect")) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        was_paused, box.is_paused = box.is_paused, False
        if was_paused:
            self.kill_server(signal.SIGCONT)
        return JSONResponse(self._described(request.path_params["id"]), 201 if was_paused else 200)

    async def _timeout(self, request: Request) -> Response:
        await self._recorded(request)
        return self._refusal(request, "timeout") or Response(status_code=204)

    async def _pause(self, request: Request) -> Response:
        await self._recorded(request)
        if (refusal := self._refusal(request, "pause")) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        if box.is_paused:
            return JSONResponse({"code": 409, "message": "already paused"}, 409)
        box.is_paused = True
        self.kill_server(signal.SIGSTOP)
        return Response(status_code=204)

    async def _kill(self, request: Request) -> Response:
        await self._recorded(request)
        if (refusal := self._refusal(request, "kill")) is not None:
            return refusal
        del self.boxes[request.path_params["id"]]
        self.kill_server()
        await asyncio.to_thread(shutil.rmtree, self.home, True)
        return Response(status_code=204)

    async def _in_box(self, request: Request) -> Response:
        """Answer a request to a port of a sandbox: that of envd, or one that a process in it has opened."""
        box = self.boxes.get(request.headers.get("E2b-Sandbox-Id", ""))
        if box is None or box.is_paused:
            return JSONResponse({"code": 502, "message": "The sandbox was not found", "sandboxId": "?"}, 502)
        port = int(request.headers["E2b-Sandbox-Port"])
        if port != 49983:
            if not self.has_traffic:
                return Response("the port is not open", 502)
            if request.headers.get("e2b-traffic-access-token") != "may-pass":
                return Response("no traffic access token", 403)
            return await _forward(request, port)
        if request.headers.get("X-Access-Token") != box.token:
            return JSONResponse({"code": 401, "message": "no access token"}, 401)
        match request.method, request.url.path:
            case "GET", "/health":
                return Response(status_code=204)
            case "POST", "/files":
                path = Path(request.query_params["path"])
                content = await request.body()
                await asyncio.to_thread(_write, path, content)
                if path.name == "start.sh":
                    self.has_script.set()
                return JSONResponse([{"name": path.name, "type": "file", "path": str(path)}])
            case "GET", "/files":
                path = Path(request.query_params["path"])
                if not path.exists():
                    return JSONResponse({"code": 404, "message": f"path '{path}' does not exist"}, 404)
                return Response(path.read_bytes())
            case "POST", "/process.Process/Start":
                return await self._start(request, box)
            case _:
                return JSONResponse({"code": 404, "message": "unknown route"}, 404)

    async def _start(self, request: Request, box: Box) -> Response:
        process = json.loads((await request.body())[5:])["process"]
        child = _spawn(process, {"HOME": str(self.home), "PATH": f"{self.programs}:/usr/bin:/bin", **box.env})

        async def events() -> AsyncIterator[bytes]:
            yield _frame({"event": {"start": {"pid": child.pid}}})
            out, err = await asyncio.to_thread(child.communicate)
            for name, data in (("stdout", out), ("stderr", err)):
                if data:
                    yield _frame({"event": {"data": {name: base64.b64encode(data).decode()}}})
            code = child.returncode
            end = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
            yield _frame({"event": {"end": end}})
            yield _frame({}, flags=2)

        return StreamingResponse(events(), media_type="application/connect+json")


def _spawn(process: dict[str, Any], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process. Not with asyncio, whose loop is not that of the main thread here."""
    return subprocess.Popen(
        [process["cmd"], *(argument for argument in process["args"] if argument != "-l")],  # of this machine
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=env["HOME"],
        env=env,
    )


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _frame(message: dict[str, Any], flags: int = 0) -> bytes:
    """Return an enveloped message of the Connect protocol."""
    data = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(data)) + data


async def _forward(request: Request, port: int) -> Response:
    """Pass a request on to a port of this machine, and the response back as it arrives."""
    headers = [(name, value) for name, value in request.headers.raw if name not in (b"host", b"connection")]
    client = httpx2.AsyncClient(timeout=None, trust_env=False)
    try:
        url = f"http://127.0.0.1:{port}{request.url.path}"
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
