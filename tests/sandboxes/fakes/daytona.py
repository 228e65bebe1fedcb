"""Daytona on loopback: its API, its toolbox and its preview proxy, as its SDK uses them."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.sandboxes.fakes.service import Box, FakeService

API_KEY = "dtn_0123456789abcdef"
_ALL = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class FakeDaytona(FakeService):
    credentials: ClassVar[tuple[str, str]] = ("authorization", f"Bearer {API_KEY}")

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/api/sandbox", self._create, methods=["POST"]),
            Route("/api/sandbox", self._list, methods=["GET"]),
            Route("/api/sandbox/{id}", self._get, methods=["GET"]),
            Route("/api/sandbox/{id}", self._delete, methods=["DELETE"]),
            Route("/api/sandbox/{id}/{action:path}", self._act, methods=["GET", "POST"]),
            Route("/toolbox/{id}/process/execute", self._execute, methods=["POST"]),
            Route("/toolbox/{id}/files/bulk-upload", self._upload, methods=["POST"]),
            Route("/toolbox/{id}/files/bulk-download", self._download, methods=["POST"]),
            Route("/preview/{id}/{port:int}/{path:path}", self._preview, methods=_ALL),
        ]

    @property
    def client(self) -> dict[str, Any]:
        """The arguments of the SDK that lead here."""
        return {"api_key": API_KEY, "api_url": f"{self.url}/api", "target": "us"}

    def error(self, status: int, message: str) -> Response:
        return JSONResponse({"statusCode": status, "message": message, "source": "DAYTONA_API"}, status)

    def refusal(self, request: HTTPConnection, name: str = "", box: str | None = None) -> Response | None:
        # Sandboxes are found by name, too.
        wanted = request.path_params.get("id")
        for box_id, found in self.boxes.items():
            if wanted == found.name:
                request.path_params["id"] = box_id
        return super().refusal(request, name, box)

    def _described(self, box_id: str, box: Box | None = None) -> dict[str, Any]:
        box = box or self.boxes[box_id]
        return {
            "id": box_id,
            "organizationId": "org",
            "name": box.name,
            "snapshot": "daytona-small",
            "user": "daytona",
            "env": box.env,
            "labels": box.metadata,
            "public": False,
            "networkBlockAll": False,
            "kvm": False,
            "target": "us",
            "cpu": 1,
            "gpu": 0,
            "memory": 1,
            "disk": 3,
            "state": "stopped" if box.is_paused else "started",
            "createdAt": "2026-11-28T10:00:00Z",
            "toolboxProxyUrl": f"{self.url}/toolbox",
        }

    async def _create(self, request: Request) -> Response:
        body = await self.recorded(request)
        if (refusal := self.refusal(request, "create")) is not None:
            return refusal
        box_id = str(uuid.uuid4())
        box = Box(body["labels"], body["env"], name=body["name"])
        await self.add(box_id, box)
        return JSONResponse(self._described(box_id, box))

    async def _list(self, request: Request) -> Response:
        self.requests.append(("GET", "/api/sandbox", dict(request.query_params)))
        wanted = json.loads(request.query_params["labels"])
        items = [
            self._described(box_id)
            for box_id, box in self.boxes.items()
            if {**box.metadata, **wanted} == box.metadata
        ]
        return self.refusal(request) or JSONResponse({"items": items, "nextCursor": None})

    async def _get(self, request: Request) -> Response:
        await self.recorded(request)
        return self.refusal(request, "wake") or JSONResponse(self._described(request.path_params["id"]))

    async def _delete(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "destroy")) is not None:
            return refusal
        described = self._described(request.path_params["id"])
        await self.remove(request.path_params["id"])
        return JSONResponse({**described, "state": "destroying"})

    async def _act(self, request: Request) -> Response:
        await self.recorded(request)
        action = request.path_params["action"]
        if (refusal := self.refusal(request, "timeout" if action == "last-activity" else action)) is not None:
            if action == "start":  # another program was faster
                self.boxes[request.path_params["id"]].is_paused = False
            return refusal
        box_id = request.path_params["id"]
        match action:
            case "stop":
                self.boxes[box_id].is_paused = True
                self.kill_server(signal.SIGKILL)
            case "start":
                self.boxes[box_id].is_paused = False
            case "last-activity":
                return Response(status_code=201)
            case _:
                port = action.removeprefix("ports/").removesuffix("/preview-url")
                url = f"{self.url}/preview/{box_id}/{port}"
                return JSONResponse({"sandboxId": box_id, "url": url, "token": self.boxes[box_id].token})
        return JSONResponse(self._described(box_id))

    async def _execute(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        code, out, err = await self.run(box, ["sh", "-c", (await request.json())["command"]])
        return JSONResponse({"exitCode": code, "result": (out + err).decode()})

    async def _upload(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        async with request.form() as form:
            file: Any = form["files[0].file"]
            await self.write(Path(str(form["files[0].path"])), await file.read())
        return Response(status_code=200)

    async def _download(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        [path] = (await request.json())["paths"]
        file = Path(path)
        if await asyncio.to_thread(file.exists):
            name, kind, content = "file", "application/octet-stream", await asyncio.to_thread(file.read_bytes)
        else:
            name, kind = "error", "application/json"
            said = {"message": f"no such file: {path}", "statusCode": 404, "code": "FILE_NOT_FOUND"}
            content = json.dumps({**said, "source": "DAYTONA_DAEMON"}).encode()
        head = f'Content-Disposition: form-data; name="{name}"; filename="{path}"\r\nContent-Type: {kind}\r\n'
        body = b"--BORDER\r\n" + head.encode() + b"\r\n" + content + b"\r\n--BORDER--\r\n"
        return Response(body, media_type="multipart/form-data; boundary=BORDER")

    async def _preview(self, request: Request) -> Response:
        box = self.boxes.get(request.path_params["id"])
        if box is None or box.is_paused:
            return self.error(400, "the sandbox does not run")
        if request.headers.get("x-daytona-preview-token") != box.token:
            return Response("no preview token", 401)
        return await self.forward(request, request.path_params["port"], f"/{request.path_params['path']}")
