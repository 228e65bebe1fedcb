"""From a request's path to its operation, and from whatever happens there to an answer.

This is the whole way of a request on our side of uvicorn. Starlette's application, router and middleware
did the same in a quarter of the request's time; its requests, responses and CORS are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from sandbox_agent.server.http.operations import Operation
from sandbox_agent.server.http.problems import answer_for, method_not_allowed, no_endpoint
from sandbox_agent.server.state import ServerState

__all__ = ["Dispatcher"]

_ANY = "{}"
# What is remembered of paths is bounded, whatever clients ask for.
_REMEMBERED = 1024
_REMEMBERED_BYTES = 512


class _Node:
    """One segment of the paths that are served."""

    __slots__ = ("children", "operations", "parameter")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter = ""
        self.operations: dict[str, Operation] = {}


class Dispatcher:
    """An ASGI application for HTTP: finds the operation and answers with what it returns or raises.

    A parameter matches one segment, in which an encoded slash is part of the value.

    Args:
        operations: what is served.
        state: given to every request.
    """

    def __init__(self, operations: Iterable[Operation], state: ServerState) -> None:
        self._state = state
        self._root = _Node()
        # a client asks for the same few paths again and again
        self._found: dict[bytes, tuple[Mapping[str, Operation], Mapping[str, str]]] = {}
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
        request = Request(scope, receive, send)
        operations = self._find(scope)
        operation = operations.get(scope["method"])
        if operation is None:
            response = method_not_allowed(operations) if operations else no_endpoint()
        else:
            try:
                response = await operation.endpoint(request)
            except Exception as error:  # noqa: BLE001 - the one boundary: answer_for logs what it doesn't know
                response = answer_for(f"{request.method} {request.url.path}", error)
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> Mapping[str, Operation]:
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        found = self._found.get(path)
        if found is None:
            found = self._resolve(path.partition(b"?")[0].decode("latin-1"))
            if len(path) <= _REMEMBERED_BYTES:
                if len(self._found) >= _REMEMBERED:
                    self._found.clear()
                self._found[path] = found
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
