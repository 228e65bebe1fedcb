"""Dispatches requests to operations by path, and converts their errors to responses.

Starlette's application, router and middleware would take a quarter of a request's time for this; its
requests, responses and CORS middleware are used as they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from urllib.parse import unquote

from starlette.requests import HTTPConnection, Request
from starlette.types import Receive, Scope, Send

from sandbox_agent.errors import PersistError
from sandbox_agent.server import metrics
from sandbox_agent.server.http.in_process import buffers_responses, endless_stream
from sandbox_agent.server.http.operations import Operation
from sandbox_agent.server.http.problems import error_response, method_not_allowed, no_endpoint, status_problem
from sandbox_agent.server.log_context import add_fields
from sandbox_agent.server.state import ServerState

# A client waits at most this long for a store that hangs.
STORE_SECONDS = 4.5
_ANY = "{}"
# The limits of the cache of paths.
_CACHED_PATHS = 1024
_CACHED_PATH_BYTES = 512
_LOGGED = ("server_id", "session_id")
# Others are counted as one.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Node:
    """One segment of the operations' paths."""

    __slots__ = ("children", "operations", "parameter")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter = ""
        self.operations: dict[str, Operation] = {}


class StoreDeadline:
    """Answers a request whose operation still waits for the store after STORE_SECONDS.

    The operation goes on until the store's own timeouts end it, and its response is dropped: a message may be
    accepted nevertheless. Only a timer is started, because almost every request is answered at once.
    """

    __slots__ = ("_answer", "_arguments", "_timer")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["store_deadline"] = self
        self._arguments = scope, receive, send
        self._timer: asyncio.TimerHandle | None = None
        self._answer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the time: the request was read."""
        self._timer = asyncio.get_running_loop().call_later(STORE_SECONDS, self._expire)

    def _expire(self) -> None:
        scope, receive, send = self._arguments
        error = PersistError(f"the store has not answered within {STORE_SECONDS:g} s")
        response = error_response(f"{scope['method']} {scope['path']}", error)
        self._answer = asyncio.ensure_future(response(scope, receive, send))

    async def is_over(self) -> bool:
        """Return whether the request was answered instead of the operation; stop the time."""
        if self._timer is not None:
            self._timer.cancel()
        if self._answer is None:
            return False
        await self._answer
        return True


def start_store_deadline(request: Request) -> None:
    """Start the deadline of an operation whose ``store_deadline`` is "body", once that was read."""
    deadline: StoreDeadline = request.scope["store_deadline"]
    deadline.start()


class _Handshake(Request):
    """The request for a WebSocket. The operation's response is an error, or goes on as the WebSocket."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        HTTPConnection.__init__(self, scope, receive)  # a Request refuses other types of scopes
        self._receive = receive
        self._send = send


class Dispatcher:
    """An ASGI application that calls the operation of a request's path and method.

    A parameter matches one segment, in which an encoded slash is part of the value.
    """

    def __init__(self, operations: Iterable[Operation], state: ServerState) -> None:
        self._state = state
        self._root = _Node()
        # Clients request the same few paths again and again.
        self._cache: dict[bytes, tuple[Mapping[str, Operation], Mapping[str, str]]] = {}
        for operation in operations:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        node = self._root
        for segment in operation.path.split("/")[1:]:
            key = _ANY if segment.startswith("{") else segment
            node = node.children.setdefault(key, _Node())
            if key is _ANY:
                node.parameter = segment[1:-1]
        node.operations[operation.method] = operation
        if operation.method == "GET":
            node.operations["HEAD"] = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["server_state"] = self._state
        is_websocket = scope["type"] == "websocket"
        method: str = "GET" if is_websocket else scope["method"]
        request = _Handshake(scope, receive, send) if is_websocket else Request(scope, receive, send)
        operations = self._find(scope)
        operation = operations.get(method)
        _log_ids(scope["path_params"])
        begun = time.perf_counter()
        if operation is not None and is_websocket and HTTPStatus.SWITCHING_PROTOCOLS not in operation.answers:
            response = status_problem(HTTPStatus.BAD_REQUEST, "this path is not that of a WebSocket", {})
        elif operation is None:
            response = method_not_allowed(operations) if operations else no_endpoint()
        else:
            deadline: StoreDeadline | None = None
            if operation.store_deadline is not None:
                deadline = StoreDeadline(scope, receive, send)
                if operation.store_deadline == "request":
                    deadline.start()
            try:
                response = await operation.endpoint(request)
            except Exception as error:  # noqa: BLE001 - the one boundary: it logs unexpected errors
                response = error_response(f"{method} {scope['path']}", error)
            if deadline is not None and await deadline.is_over():
                _count(operation, method, HTTPStatus.SERVICE_UNAVAILABLE, begun)
                return
        if getattr(response, "endless", False) and method != "HEAD" and buffers_responses(scope):
            response = endless_stream()
        _count(next(iter(operations.values()), None), method, response.status_code, begun)
        kind: str | None = getattr(response, "stream_type", None)
        if operation is None or kind is None or method == "HEAD":
            await response(scope, receive, send)
        else:
            with metrics.STREAMS.held(operation.path, kind):
                await response(scope, receive, send)

    def _find(self, scope: Scope) -> Mapping[str, Operation]:
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        found = self._cache.get(path)
        if found is None:
            found = self._resolve(path.partition(b"?")[0].decode("latin-1"))
            if len(path) <= _CACHED_PATH_BYTES:
                if len(self._cache) >= _CACHED_PATHS:
                    self._cache.clear()
                self._cache[path] = found
        operations, scope["path_params"] = found
        return operations

    def _resolve(self, path: str) -> tuple[Mapping[str, Operation], Mapping[str, str]]:
        node = self._root
        parameters: dict[str, str] = {}
        for segment in path.split("/")[1:]:
            child = node.children.get(segment)
            if child is None:
                child = node.children.get(_ANY)
                if child is None or not segment:
                    return {}, {}
                parameters[child.parameter] = unquote(segment)
            node = child
        return node.operations, parameters


def _log_ids(parameters: Mapping[str, str]) -> None:
    """Add the ids of the path to the lines that are logged for the request."""
    found = {name: parameters[name] for name in _LOGGED if name in parameters}
    if found:
        add_fields(**found)


def _count(operation: Operation | None, method: str, status: int, begun: float) -> None:
    """Count a request to the path of an operation, or to no path of any."""
    route = metrics.OTHER if operation is None else operation.path
    method = method if method in _METHODS else metrics.OTHER
    metrics.count_request(route, method, status, time.perf_counter() - begun)
