"""The API server of a cluster on loopback, as far as a pod needs it. Pods are processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.sandboxes.fakes.service import Box, FakeService

TOKEN = "0123456789abcdef"
_PODS = "/api/v1/namespaces/{namespace}/pods"


class FakeKubernetes(FakeService):
    """An API server.

    Attributes:
        states: What a pod's container is in each time it is asked for, before it runs.
        forwards: The ports that were forwarded.
    """

    credentials: ClassVar[tuple[str, str]] = ("authorization", f"Bearer {TOKEN}")
    ws: ClassVar[Literal["none", "websockets-sansio"]] = "websockets-sansio"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.states: list[dict[str, Any]] = []
        self.forwards: list[int] = []
        self.phase = "Running"

    def routes(self) -> Sequence[BaseRoute]:
        return [
            Route(_PODS, self._create, methods=["POST"]),
            Route(_PODS, self._list, methods=["GET"]),
            Route(f"{_PODS}/{{id}}", self._get, methods=["GET"]),
            Route(f"{_PODS}/{{id}}", self._delete, methods=["DELETE"]),
            WebSocketRoute(f"{_PODS}/{{id}}/exec", self._exec),
            WebSocketRoute(f"{_PODS}/{{id}}/portforward", self._forward),
        ]

    def error(self, status: int, message: str) -> Response:
        body = {"kind": "Status", "status": "Failure", "message": message, "reason": "X", "code": status}
        return JSONResponse(body, status)

    def kubeconfig(self, **user: Any) -> dict[str, Any]:
        """Return a configuration that leads here. YAML includes JSON."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "agents"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": user or {"token": TOKEN}}],
        }

    def _described(self, name: str) -> dict[str, Any]:
        state = self.states.pop(0) if self.states else {"running": {"startedAt": "2026-01-02T03:04:05Z"}}
        return {
            "metadata": {
                "name": name,
                "labels": self.boxes[name].metadata,
                "creationTimestamp": "2026-01-02T03:04:05Z",
            },
            "spec": {"containers": [{"name": "sandbox", "image": "image"}]},
            "status": {
                "phase": self.phase,
                "podIP": "127.0.0.1",
                "containerStatuses": [{"name": "sandbox", "state": state}],
            },
        }

    async def _create(self, request: Request) -> Response:
        pod = await self.recorded(request)
        if (refusal := self.refusal(request, "create")) is not None:
            return refusal
        name = pod["metadata"]["name"]
        env = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        await self.add(name, Box(pod["metadata"]["labels"], env))
        return JSONResponse({}, 201)

    async def _list(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request)) is not None:
            return refusal
        key, _, value = request.query_params["labelSelector"].partition("=")
        found = [name for name, box in self.boxes.items() if box.metadata.get(key) == value]
        return JSONResponse({"items": [self._described(name) for name in found]})

    async def _get(self, request: Request) -> Response:
        await self.recorded(request)
        return self.refusal(request) or JSONResponse(self._described(request.path_params["id"]))

    async def _delete(self, request: Request) -> Response:
        await self.recorded(request)
        if (refusal := self.refusal(request, "destroy")) is not None:
            return refusal
        assert request.query_params["gracePeriodSeconds"] == "0"
        await self.remove(request.path_params["id"])
        return JSONResponse({})

    async def _exec(self, socket: WebSocket) -> None:
        if (refusal := self.refusal(socket)) is not None:
            await socket.send_denial_response(refusal)
            return
        # The version of older clusters, in which the client cannot end the input.
        assert "v4.channel.k8s.io" in socket.scope["subprotocols"]
        await socket.accept("v4.channel.k8s.io")
        query = socket.query_params
        command, stdin = query.getlist("command"), b""
        if query["stdin"] == "true":
            [size] = [int(word) for word in command[-1].split("head -c ")[1].split()[:1]]
            while len(stdin) < size:
                message = await socket.receive_bytes()
                assert message[0] == 0
                stdin += message[1:]
        code, out, err = await self.run(self.boxes[socket.path_params["id"]], command, stdin)
        for channel, data in ((1, out), (2, err)):
            await socket.send_bytes(bytes([channel]))  # the API server begins with empty messages
            if data:
                await socket.send_bytes(bytes([channel]) + data)
        status: dict[str, Any] = {"status": "Success", "metadata": {}}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
        await socket.send_bytes(b"\x03" + json.dumps(status).encode())
        with contextlib.suppress(RuntimeError):  # the client has closed it
            await socket.close()

    async def _forward(self, socket: WebSocket) -> None:
        if (refusal := self.refusal(socket)) is not None:
            await socket.send_denial_response(refusal)
            return
        port = int(socket.query_params["ports"])
        self.forwards.append(port)
        await socket.accept("v4.channel.k8s.io")
        for channel in (0, 1):
            await socket.send_bytes(bytes([channel]) + port.to_bytes(2, "little"))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            await socket.send_bytes(b"\x01" + str(error).encode())
            await socket.close()
            return

        async def send() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(4096):
                    await socket.send_bytes(b"\x00" + data)
            await socket.close()

        sending = asyncio.ensure_future(send())
        try:
            while True:
                message = await socket.receive_bytes()
                assert message[0] == 0
                writer.write(message[1:])
                await writer.drain()
        except (WebSocketDisconnect, OSError, RuntimeError):
            pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.close()
