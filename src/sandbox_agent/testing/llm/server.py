"""The server of the scripted model, in the event loop of the program that uses it."""

from __future__ import annotations

import gzip
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sandbox_agent.testing.llm import anthropic, chat, gemini, responses
from sandbox_agent.testing.llm.request import LLMRequest, Object
from sandbox_agent.testing.llm.script import Pause, Reply, reply_to
from sandbox_agent.testing.loopback import LoopbackServer
from sandbox_agent.wire.jsonrpc import members

Script = Callable[[LLMRequest], "Reply | str | Awaitable[Reply | str | None] | None"]

_MODELS = ("scripted-model", "scripted-model-2")
_COUNTS = {"input_tokens": 10, "totalTokens": 10}


class _Api(Protocol):
    """What the module of an API offers."""

    def read(self, body: Object, path: str) -> LLMRequest: ...
    def document(self, request: LLMRequest, reply: Reply, number: int) -> Object: ...
    def events(self, request: LLMRequest, reply: Reply, number: int) -> Iterator[Object | str | Pause]: ...
    def error(self, status: int, message: str) -> Object: ...


_APIS: dict[str, _Api] = {
    "/messages": anthropic,
    "/responses": responses,
    "/chat/completions": chat,
    "generateContent": gemini,
    "streamGenerateContent": gemini,
}


class ScriptedLLM(LoopbackServer):
    """A language model that follows a script, on a free port of 127.0.0.1. Enter it with ``async with``.

    Attributes:
        url: Its base URL, without a path.
        requests: What it was asked, oldest first.
        unknown: Requests for what it does not offer, as method and path.
    """

    def __init__(self, script: Script | None = None) -> None:
        """Store the script.

        Args:
            script: Returns the reply to a request, or its text; None for a reply by the directives of the
                prompt. It may be async.

        Raises:
            ImportError: The extra ``server`` is not installed.
        """
        self.requests: list[LLMRequest] = []
        self.unknown: list[str] = []
        self._script = script
        methods = ["GET", "HEAD", "POST"]
        super().__init__(Starlette(routes=[Route("/{path:path}", self._respond, methods=methods)]))

    async def _respond(self, request: Request) -> Response:
        path = request.url.path
        if request.method == "HEAD":  # whether anything is there
            return Response()
        if request.method == "GET" and path.rstrip("/").endswith("/models"):
            return JSONResponse(_models())
        if path.endswith(("/count_tokens", ":countTokens")):
            return JSONResponse(_COUNTS)
        api = next((api for end, api in _APIS.items() if path.endswith(end)), None)
        if request.method != "POST" or api is None:
            self.unknown.append(f"{request.method} {path}")
            return JSONResponse({"error": {"type": "not_found_error", "message": path}}, 404)
        body = await request.body()
        try:
            if request.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            document = json.loads(body)
        except (ValueError, OSError, EOFError) as error:
            return JSONResponse(api.error(400, f"the body is not JSON: {error}"), 400)
        return await self._reply(request, api, members(document))

    async def _reply(self, http: Request, api: _Api, body: Object) -> Response:
        request = api.read(body, http.url.path)
        self.requests.append(request)
        number = len(self.requests)
        try:
            reply = await self._decide(request)
        except ValueError as error:
            return JSONResponse(api.error(400, f"there is no reply: invalid directive: {error}"), 400)
        if reply.hang or (reply.stall and not request.streaming):
            await self.wait_disconnected(http)
            return Response(status_code=499)
        if reply.error is not None:
            return JSONResponse(api.error(reply.error, f"scripted error {reply.error}"), reply.error)
        if not request.streaming:
            return JSONResponse(api.document(request, reply, number))
        stream = self._stream(http, api.events(request, reply, number))
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _decide(self, request: LLMRequest) -> Reply:
        result: Any = None if self._script is None else self._script(request)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, str):
            return Reply(text=result)
        return cast("Reply | None", result) or reply_to(request)

    async def _stream(self, http: Request, events: Iterator[Object | str | Pause]) -> AsyncIterator[str]:
        for event in events:
            if await http.is_disconnected():
                return
            if isinstance(event, Pause):
                if await self.wait_disconnected(http, event.seconds):
                    return
            elif isinstance(event, str):
                yield f"data: {event}\n\n"
            else:
                name = f"event: {event['type']}\n" if "type" in event else ""
                yield f"{name}data: {json.dumps(event)}\n\n"


def _models() -> Object:
    """Return the list of models in one document for all APIs."""
    models = [
        {
            "id": name,
            "object": "model",
            "type": "model",
            "display_name": name,
            "created": 1_700_000_000,
            "created_at": "2025-01-01T00:00:00Z",
            "owned_by": "script",
        }
        for name in _MODELS
    ]
    return {
        "object": "list",
        "data": models,
        "has_more": False,
        "first_id": _MODELS[0],
        "last_id": _MODELS[-1],
    }
