"""A Worker on loopback that answers as the one in docs/sandboxes/cloudflare.md does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tests.sandboxes.fakes.service import Box, FakeService

API_KEY = "0123456789abcdef"
_ALL = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class FakeCloudflare(FakeService):
    credentials: ClassVar[tuple[str, str]] = ("x-sandbox-key", API_KEY)

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/v1/sandbox/{id}", self._put, methods=["PUT"]),
            Route("/v1/sandbox/{id}", self._get, methods=["GET"]),
            Route("/v1/sandbox/{id}", self._delete, methods=["DELETE"]),
            Route("/v1/sandbox/{id}/timeout", self._timeout, methods=["POST"]),
            Route("/v1/sandbox/{id}/exec", self._exec, methods=["POST"]),
            Route("/v1/sandbox/{id}/file", self._file, methods=["GET", "PUT"]),
            Route("/v1/sandbox/{id}/port/{port:int}/{path:path}", self._port, methods=_ALL),
        ]

    async def _put(self, request: Request) -> Response:
        body = await self.recorded(request)
        box_id = request.path_params.pop("id")
        if (refusal := self.refusal(request, "create")) is not None:
            return refusal
        if box_id in self.boxes:
            return self.error(409, "this sandbox exists")
        await self.add(box_id, Box(body["metadata"], {}))
        return JSONResponse({}, 201)

    async def _get(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request)) is not None:
            return refusal
        return JSONResponse({"metadata": self.boxes[request.path_params["id"]].metadata})

    async def _delete(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "destroy")) is not None:
            return refusal
        await self.remove(request.path_params["id"])
        return Response(status_code=204)

    async def _timeout(self, request: Request) -> Response:
        await self.recorded(request)
        return self.refusal(request, "timeout") or Response(status_code=204)

    async def _exec(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        command = (await request.json())["command"]
        code, out, err = await self.run(self.boxes[request.path_params["id"]], ["sh", "-c", command])
        return JSONResponse({"exitCode": code, "stdout": out.decode(), "stderr": err.decode()})

    async def _file(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        path = Path(request.query_params["path"])
        if request.method == "PUT":
            await self.write(path, await request.body())
            return Response(status_code=204)
        if not await asyncio.to_thread(path.exists):
            return JSONResponse({"code": "no_such_file", "message": f"no file {path}"}, 404)
        return Response(await asyncio.to_thread(path.read_bytes))

    async def _port(self, request: Request) -> Response:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        return await self.forward(request, request.path_params["port"], f"/{request.path_params['path']}")
