"""Sprites on loopback, as its HTTP API and its own SDK's commands are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.sandboxes.fakes.service import Box, FakeService

API_KEY = "org/1/0123456789abcdef"
_ALL = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class FakeSprites(FakeService):
    """Sprites. A service's processes start again when a sprite that is cold wakes up."""

    credentials: ClassVar[tuple[str, str]] = ("authorization", f"Bearer {API_KEY}")
    ws: ClassVar[Literal["none", "websockets-sansio"]] = "websockets-sansio"

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route("/v1/sprites", self._create, methods=["POST"]),
            Route("/v1/sprites", self._list, methods=["GET"]),
            Route("/v1/sprites/{id}", self._get, methods=["GET"]),
            Route("/v1/sprites/{id}", self._delete, methods=["DELETE"]),
            Route("/v1/sprites/{id}/services/{name}", self._service, methods=["PUT"]),
            WebSocketRoute("/v1/sprites/{id}/exec", self._exec),
            Route("/port/{id}/{path:path}", self._port, methods=_ALL),
        ]

    def error(self, status: int, message: str) -> Response:
        return JSONResponse({"error": "some_code", "message": message}, status)

    def _described(self, name: str) -> dict[str, Any]:
        box = self.boxes[name]
        return {
            "id": f"sprite-{name}",
            "name": name,
            "status": "cold" if box.is_paused else "running",
            "url": f"{self.url}/port/{name}",
            "labels": list(box.metadata),
            "created_at": "2026-01-02T03:04:05Z",
        }

    async def _create(self, request: Request) -> Response:
        body = await self.recorded(request)
        if (refusal := self.refusal(request, "create")) is not None:
            return refusal
        if body["name"] in self.boxes:
            return self.error(409, "this name is taken")
        await self.add(body["name"], Box(dict.fromkeys(body["labels"], ""), {}))
        return JSONResponse(self._described(body["name"]), 201)

    async def _list(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request)) is not None:
            return refusal
        # One in a page.
        names, start = list(self.boxes), int(request.query_params.get("continuation_token", 0))
        page = {"sprites": [self._described(name) for name in names[start : start + 1]]}
        more = {"has_more": start + 1 < len(names), "next_continuation_token": str(start + 1)}
        return JSONResponse({**page, **more})

    async def _get(self, request: Request) -> Response:
        await self.recorded(request)
        return self.refusal(request) or JSONResponse(self._described(request.path_params["id"]))

    async def _delete(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "destroy")) is not None:
            return refusal
        await self.remove(request.path_params["id"])
        return Response(status_code=204)

    async def _service(self, request: Request) -> Response:
        body = await self.recorded(request)
        if (refusal := self.refusal(request)) is not None:
            return refusal
        box = self.boxes[request.path_params["id"]]
        box.port = body["http_port"]
        # A service runs until it is stopped: what it starts is running when this responds, or will be.
        box.service = [body["cmd"], *body["args"]]
        self.start(box, box.service)
        return Response('{"type": "started"}\n{"type": "complete"}\n', media_type="application/x-ndjson")

    async def wake(self, box: Box) -> None:
        """Start the processes of a sprite that is cold."""
        if box.is_paused:
            box.is_paused = False
            self.start(box, box.service)

    async def _exec(self, socket: WebSocket) -> None:
        if (refusal := self.refusal(socket)) is not None:
            await socket.send_denial_response(refusal)
            return
        box = self.boxes[socket.path_params["id"]]
        await self.wake(box)
        await socket.accept()
        # The client may send all of the input before the command reads it.
        stdin = b""
        while (message := await socket.receive_bytes())[0] == 0:
            stdin += message[1:]
        assert message == b"\x04"
        await socket.send_text('{"type": "session_info", "tty": false}')
        code, out, err = await self.run(box, socket.query_params.getlist("cmd"), stdin)
        for stream, data in ((1, out), (2, err)):
            if data:
                await socket.send_bytes(bytes([stream]) + data)
        await socket.send_bytes(bytes([3, code]))
        await socket.close()

    async def _port(self, request: Request) -> Response:
        box = self.boxes.get(request.path_params["id"])
        if box is None:
            return Response("no such sprite", 404)
        await self.wake(box)
        return await self.forward(request, box.port, f"/{request.path_params['path']}")

    async def sleep(self, name: str) -> None:
        """Let a sprite become cold: its processes end, and its files stay."""
        self.boxes[name].is_paused = True
        await asyncio.to_thread(self.kill_server)
