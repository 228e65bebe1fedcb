"""The connection to the client: writes whole lines, sends requests and delivers their responses."""

from __future__ import annotations

import json
import os
import threading

TYPE_CHECKING = False  # importing typing would take a third of the start time
if TYPE_CHECKING:
    from queue import SimpleQueue
    from typing import Any

    JsonObject = dict[str, Any]
    Responses = SimpleQueue[JsonObject | None]

INVALID_PARAMS = -32602
NOT_FOUND = -32002


class RpcError(Exception):
    """The JSON-RPC error to send as the response."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def as_object(value: Any) -> JsonObject | None:
    """Return the value if it is a JSON object."""
    return value if _is(value, dict) else None


def as_list(value: Any) -> list[Any] | None:
    """Return the value if it is a JSON array."""
    return value if _is(value, list) else None


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind)


def encode(message: object) -> bytes:
    """Return compact JSON. Non-ASCII text is UTF-8; lone surrogates are escaped."""
    try:
        return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(message, separators=(",", ":")).encode()


class Peer:
    """Writes to the client. Threads may share it; lines never mix.

    Attributes:
        deaf: Whether SIGTERM and the end of stdin are ignored.
        client_capabilities: What the client announced in initialize.
    """

    def __init__(self, fd: int) -> None:
        self.deaf = False
        self.client_capabilities: JsonObject = {}
        self._fd = fd
        self._lock = threading.Lock()
        self._next_id = 0
        self._pending: dict[int, Responses] = {}

    def write(self, data: bytes) -> None:
        """Write bytes that end with a newline."""
        with self._lock:
            self._write(data)

    def write_parts(self, parts: list[bytes], pause: threading.Event) -> None:
        """Write the parts of a line one by one, so that the client needs several reads."""
        with self._lock:
            for part in parts:
                self._write(part)
                pause.wait(0.02)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError:
            # The client is gone: exit, unless deaf.
            if not self.deaf:
                os._exit(0)

    def send(self, message: JsonObject) -> None:
        """Write one envelope."""
        self.write(encode({"jsonrpc": "2.0", **message}) + b"\n")

    def notify(self, method: str, params: JsonObject) -> None:
        """Send a notification."""
        self.send({"method": method, "params": params})

    def respond(self, request_id: object, answer: object) -> None:
        """Answer a request with a result or an RpcError."""
        if not isinstance(answer, RpcError):
            self.send({"id": request_id, "result": answer})
            return
        data = {} if answer.data is None else {"data": answer.data}
        self.send({"id": request_id, "error": {"code": answer.code, "message": answer.message, **data}})

    def request(self, method: str, params: JsonObject, responses: Responses) -> int:
        """Send a request and return its id. Ids count from 0, independent of the client's."""
        with self._lock:
            request_id = self._next_id
            self._next_id += 1
            self._pending[request_id] = responses
        self.send({"id": request_id, "method": method, "params": params})
        return request_id

    def deliver_response(self, response: JsonObject) -> None:
        """Deliver the client's response to the sender of its request; ignore other responses."""
        request_id = response.get("id")
        if isinstance(request_id, int):
            with self._lock:
                responses = self._pending.pop(request_id, None)
            if responses is not None:
                responses.put(response)

    def forget(self, request_ids: list[int]) -> None:
        """Stop waiting for these responses."""
        with self._lock:
            for request_id in request_ids:
                self._pending.pop(request_id, None)
