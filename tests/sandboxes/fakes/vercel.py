"""Vercel's sandboxes on loopback: the API as its SDK uses it."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import tarfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from tests.sandboxes.fakes.service import Box, FakeService

TOKEN = "vck_0123456789abcdef"
_ALL = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class FakeVercel(FakeService):
    credentials: ClassVar[tuple[str, str]] = ("authorization", f"Bearer {TOKEN}")

    def routes(self) -> Sequence[BaseRoute]:
        session = "/v2/sandboxes/sessions/{session}"
        return [
            Route("/v3/sandboxes", self._create, methods=["POST"]),
            Route("/v2/sandboxes", self._list, methods=["GET"]),
            Route("/v2/sandboxes/{id}", self._get, methods=["GET"]),
            Route("/v2/sandboxes/{id}", self._delete, methods=["DELETE"]),
            Route(f"{session}/stop", self._stop, methods=["POST"]),
            Route(f"{session}/extend-timeout", self._extend, methods=["POST"]),
            Route(f"{session}/cmd", self._command, methods=["POST"]),
            Route(f"{session}/fs/write", self._write, methods=["POST"]),
            Route(f"{session}/fs/read", self._read, methods=["POST"]),
            Route("/port/{id}/{port:int}/{path:path}", self._port, methods=_ALL),
        ]

    @property
    def client(self) -> dict[str, Any]:
        """The arguments of the SDK that lead here."""
        from vercel.sandbox import SandboxCredentials

        async def find() -> SandboxCredentials:
            return SandboxCredentials(token=TOKEN, team_id="team_1", project_id="prj_1")

        return {"base_url": self.url, "credentials_factory": find}

    def error(self, status: int, message: str) -> Response:
        return JSONResponse({"error": {"code": f"status_{status}", "message": message}}, status)

    def refusal(self, request: HTTPConnection, name: str = "", box: str | None = None) -> Response | None:
        session = request.path_params.get("session")
        if session is not None:
            box = next((box_id for box_id, found in self.boxes.items() if found.token == session), session)
            request.path_params["id"] = box
        return super().refusal(request, name, box)

    def _session(self, box_id: str, box: Box) -> dict[str, Any]:
        status = "stopped" if box.is_paused else "running"
        times = {"timeout": box.timeout * 1000, "startedAt": int(box.started * 1000)}
        names = {"sourceSandboxName": box_id, "projectId": "prj_1", "cwd": "/vercel/sandbox"}
        return {"id": box.token, "status": status, **times, **names}

    def _described(self, box_id: str, box: Box | None = None) -> dict[str, Any]:
        box = box or self.boxes[box_id]
        session = self._session(box_id, box)
        names = {"name": box_id, "currentSessionId": box.token, "image": "vercel/sandbox/universal@sha256:1"}
        sandbox = {
            **session,
            **names,
            "persistent": True,
            "tags": box.metadata,
            "createdAt": 1_700_000_000_000,
        }
        url = f"{self.url}/port/{box_id}/{box.port}"
        routes = [{"url": url, "port": box.port, "subdomain": box_id}]
        return {"sandbox": sandbox, "session": session, "routes": routes}

    async def _create(self, request: Request) -> Response:
        body = await self.recorded(request)
        if (refusal := self.refusal(request, "create")) is not None:
            return refusal
        box = Box(body["tags"], body.get("env") or {}, port=body["ports"][0], timeout=body["timeout"] // 1000)
        await self.add(body["name"], box)
        return JSONResponse(self._described(body["name"], box))

    async def _list(self, request: Request) -> Response:
        self.requests.append(("GET", "/v2/sandboxes", dict(request.query_params)))
        items = [self._described(box_id)["sandbox"] for box_id in self.boxes]
        pages = {"count": len(items), "next": None}
        return self.refusal(request) or JSONResponse({"sandboxes": items, "pagination": pages})

    async def _get(self, request: Request) -> Response:
        resume = request.query_params["resume"]
        self.requests.append(("GET", request.url.path, resume))
        if (refusal := self.refusal(request, "wake")) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        if resume == "true" and box.is_paused:
            box.is_paused, box.token, box.started = False, secrets.token_hex(8), time.time()
        return JSONResponse(self._described(request.path_params["id"]))

    async def _delete(self, request: Request) -> Response:
        self.requests.append(("DELETE", request.url.path, dict(request.query_params)))
        if (refusal := self.refusal(request, "destroy")) is not None:
            return refusal
        described = self._described(request.path_params["id"])
        await self.remove(request.path_params["id"])
        return JSONResponse(described)

    async def _stop(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "stop")) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        box.is_paused = True
        self.kill_server()
        return JSONResponse({"session": self._session(request.path_params["id"], box)})

    async def _extend(self, request: Request) -> Response:
        body = await self.recorded(request)
        if (refusal := self.refusal(request, "timeout")) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        box.timeout += body["duration"] // 1000
        return JSONResponse({"session": self._session(request.path_params["id"], box)})

    async def _command(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        if box.is_paused:
            return JSONResponse({"error": {"code": "sandbox_stopped", "message": "stopped"}}, 410)
        body = await request.json()
        names = {"id": "cmd_1", "name": body["command"], "args": body["args"], "cwd": "/"}
        command = {**names, "sessionId": box.token, "startedAt": 1, "exitCode": None}

        async def records() -> AsyncIterator[bytes]:
            yield json.dumps({"command": command}).encode() + b"\n"
            code, out, err = await self.run(box, [body["command"], *body["args"]])
            for stream, data in (("stdout", out), ("stderr", err)):
                if data:
                    yield json.dumps({"stream": stream, "data": data.decode()}).encode() + b"\n"
            yield json.dumps({"command": {**command, "exitCode": code}}).encode() + b"\n"

        return StreamingResponse(records(), media_type="application/x-ndjson")

    async def _write(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        content = await request.body()
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as archive:
            for member in archive:
                if (file := archive.extractfile(member)) is not None:
                    await self.write(Path(request.headers["x-cwd"], member.name), file.read())
        return JSONResponse({})

    async def _read(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        path = Path((await request.json())["path"])
        if not await asyncio.to_thread(path.exists):
            return JSONResponse({"error": {"code": "file_not_found", "message": f"no file {path}"}}, 404)
        return Response(await asyncio.to_thread(path.read_bytes), media_type="application/octet-stream")

    async def _port(self, request: Request) -> Response:
        box = self.boxes.get(request.path_params["id"])
        if box is None or box.is_paused:
            return Response("the sandbox does not run", 502)
        return await self.forward(request, request.path_params["port"], f"/{request.path_params['path']}")
