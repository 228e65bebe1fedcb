"""E2B on loopback: its API and its envd, as its SDK uses them."""

from __future__ import annotations

import base64
import json
import secrets
import signal
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from tests.sandboxes.fakes.service import Box, FakeService

API_KEY = "e2b_0123456789abcdef"


class FakeE2B(FakeService):
    credentials: ClassVar[tuple[str, str]] = ("x-api-key", API_KEY)

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/v2/sandboxes", self._create, methods=["POST"]),
            Route("/v2/sandboxes", self._list, methods=["GET"]),
            Route("/v2/sandboxes/{id}/connect", self._connect, methods=["POST"]),
            Route("/sandboxes/{id}/connect", self._connect, methods=["POST"]),
            Route("/sandboxes/{id}/timeout", self._timeout, methods=["POST"]),
            Route("/sandboxes/{id}/pause", self._pause, methods=["POST"]),
            Route("/sandboxes/{id}", self._kill, methods=["DELETE"]),
            Route("/{path:path}", self._in_box, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ]

    @property
    def client(self) -> dict[str, Any]:
        """The arguments of the SDK that lead here."""
        # HTTP/2 needs TLS.
        return {"api_key": API_KEY, "api_url": self.url, "sandbox_url": self.url, "http_version": "1.1"}

    async def _create(self, request: Request) -> Response:
        body = await self.recorded(request)
        if (refusal := self.refusal(request, "create")) is not None:
            return refusal
        # The same request has the same sandbox.
        key = request.headers["idempotency-key"]
        box_id = next(
            (known for known, box in self.boxes.items() if box.name == key), f"i{secrets.token_hex(8)}"
        )
        await self.add(box_id, Box(body["metadata"], body["envVars"], name=key))
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

    async def _list(self, request: Request) -> Response:
        self.requests.append(("GET", str(request.url.replace(scheme="", netloc="")), None))
        wanted = dict(parse_qsl(request.query_params["metadata"]))
        items = [
            {
                **self._described(box_id),
                "cpuCount": 2,
                "memoryMB": 512,
                "diskSizeMB": 1024,
                "startedAt": "2026-11-28T10:00:00Z",
                "endAt": "2026-11-28T11:00:00Z",
                "state": "paused" if box.is_paused else "running",
                "metadata": box.metadata,
            }
            for box_id, box in self.boxes.items()
            if wanted.items() <= box.metadata.items()
        ]
        return self.refusal(request) or JSONResponse(items)

    async def _connect(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "wake")) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        was_paused, box.is_paused = box.is_paused, False
        if was_paused:
            self.kill_server(signal.SIGCONT)
        return JSONResponse(self._described(request.path_params["id"]), 201 if was_paused else 200)

    async def _timeout(self, request: Request) -> Response:
        await self.recorded(request)
        return self.refusal(request, "timeout") or Response(status_code=204)

    async def _pause(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "pause")) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        if box.is_paused:
            return self.error(409, "already paused")
        box.is_paused = True
        self.kill_server(signal.SIGSTOP)
        return Response(status_code=204)

    async def _kill(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "destroy")) is not None:
            return refusal
        await self.remove(request.path_params["id"])
        return Response(status_code=204)

    async def _in_box(self, request: Request) -> Response:
        """Answer a request to a port of a sandbox: that of envd, or one that a process in it has opened."""
        box = self.boxes.get(request.headers.get("E2b-Sandbox-Id", ""))
        if box is None or box.is_paused:
            return JSONResponse({"code": 502, "message": "The sandbox was not found", "sandboxId": "?"}, 502)
        port = int(request.headers["E2b-Sandbox-Port"])
        if port != 49983:
            if request.headers.get("e2b-traffic-access-token") != "may-pass":
                return Response("no traffic access token", 403)
            return await self.forward(request, port)
        if request.headers.get("X-Access-Token") != box.token:
            return self.error(401, "no access token")
        match request.method, request.url.path:
            case "GET", "/health":
                return Response(status_code=204)
            case "POST", "/files":
                path = Path(request.query_params["path"])
                await self.write(path, await request.body())
                return JSONResponse([{"name": path.name, "type": "file", "path": str(path)}])
            case "GET", "/files":
                path = Path(request.query_params["path"])
                if not path.exists():
                    return self.error(404, f"path '{path}' does not exist")
                return Response(path.read_bytes())
            case "POST", "/process.Process/Start":
                return await self._start(request, box)
            case _:
                return self.error(404, "unknown route")

    async def _start(self, request: Request, box: Box) -> Response:
        process = json.loads((await request.body())[5:])["process"]
        # Not "-l": a login shell would read the profile of this machine.
        command = [process["cmd"], *(argument for argument in process["args"] if argument != "-l")]

        async def events() -> AsyncIterator[bytes]:
            yield _frame({"event": {"start": {"pid": 1000}}})
            code, out, err = await self.run(box, command)
            for name, data in (("stdout", out), ("stderr", err)):
                if data:
                    yield _frame({"event": {"data": {name: base64.b64encode(data).decode()}}})
            end = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
            yield _frame({"event": {"end": end}})
            yield _frame({}, flags=2)

        return StreamingResponse(events(), media_type="application/connect+json")


def _frame(message: dict[str, Any], flags: int = 0) -> bytes:
    """Return an enveloped message of the Connect protocol."""
    data = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(data)) + data
