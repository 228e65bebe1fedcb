"""ComputeSDK's gateway and its sandboxes on loopback, as its SDK uses them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.sandboxes.fakes.service import Box, FakeService

API_KEY = "computesdk_0123456789abcdef"


class FakeComputeSDK(FakeService):
    credentials: ClassVar[tuple[str, str]] = ("x-computesdk-api-key", API_KEY)

    def routes(self) -> Sequence[BaseRoute]:
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        return [
            Route("/v1/sandboxes", self._create, methods=["POST"]),
            Route("/v1/sandboxes/find", self._find, methods=["POST"]),
            Route("/v1/sandboxes/{id}", self._delete, methods=["DELETE"]),
            Route("/v1/sandboxes/{id}/extend", self._extend, methods=["POST"]),
            Route("/box/{id}/run/command", self._command, methods=["POST"]),
            Route("/box/{id}/files", self._write, methods=["POST"]),
            Route("/box/{id}/files/{path:path}", self._read, methods=["GET"]),
            Route("/port/{id}/{port:int}/{path:path}", self._port, methods=methods),
        ]

    @property
    def client(self) -> dict[str, Any]:
        """The arguments of the SDK that lead here."""
        return {
            "api_key": API_KEY,
            "provider": "e2b",
            "gateway_url": self.url,
            "provider_headers": {"X-E2B-API-Key": "e2b_1"},
        }

    def error(self, status: int, message: str) -> Response:
        return JSONResponse({"error": message}, status)

    def _described(self, box_id: str, box: Box) -> dict[str, Any]:
        names = {"sandboxId": box_id, "name": box.name, "namespace": "default", "provider": "e2b"}
        return {"data": {**names, "url": f"{self.url}/box/{box_id}", "token": box.token}}

    async def _create(self, request: Request) -> Response:
        body = await self.recorded(request)
        if (refusal := self.refusal(request, "create")) is not None:
            return refusal
        box_id = f"cs-{secrets.token_hex(8)}"
        box = Box(body["metadata"], body["envs"], name=body["name"])
        await self.add(box_id, box)
        return JSONResponse(self._described(box_id, box))

    async def _find(self, request: Request) -> Response:
        body = await self.recorded(request)
        if (refusal := self.refusal(request, "wake")) is not None:
            return refusal
        for box_id, box in self.boxes.items():
            if box.name == body["name"]:
                return JSONResponse(self._described(box_id, box))
        return JSONResponse({"data": None})

    async def _delete(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "destroy")) is not None:
            return refusal
        await self.remove(request.path_params["id"])
        return Response(status_code=204)

    async def _extend(self, request: Request) -> Response:
        await self.recorded(request)
        return self.refusal(request, "timeout") or JSONResponse({})

    def _box(self, request: Request) -> Box | None:
        box = self.boxes.get(request.path_params["id"])
        return box if box and request.headers["authorization"] == f"Bearer {box.token}" else None

    async def _command(self, request: Request) -> Response:
        if (box := self._box(request)) is None:
            return self.error(404, "no such sandbox")
        code, out, err = await self.run(box, ["sh", "-c", (await request.json())["command"]])
        return JSONResponse({"data": {"stdout": out.decode(), "stderr": err.decode(), "exit_code": code}})

    async def _write(self, request: Request) -> Response:
        if self._box(request) is None:
            return self.error(404, "no such sandbox")
        body = await request.json()
        path = Path(body["path"])
        if not await asyncio.to_thread(path.parent.exists):
            return self.error(500, f"there is no folder {path.parent}")
        await self.write(path, body["content"].encode())
        if "start.sh" in path.name:
            self.has_script.set()
        return JSONResponse({})

    async def _read(self, request: Request) -> Response:
        path = Path("/", request.path_params["path"])
        if self._box(request) is None or not await asyncio.to_thread(path.exists):
            return self.error(404, "no such file")
        return JSONResponse({"data": (await asyncio.to_thread(path.read_bytes)).decode()})

    async def _port(self, request: Request) -> Response:
        if request.path_params["id"] not in self.boxes:
            return Response("no such sandbox", 502)
        return await self.forward(request, request.path_params["port"], f"/{request.path_params['path']}")
