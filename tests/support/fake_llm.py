"""A language model that follows a script: Anthropic's Messages API on loopback, for agents without a network.

The last thing that the user said may hold directives; without any the answer is ``Hello from the script.``::

    [[say TEXT]]           the answer
    [[think TEXT]]         a thinking block before it
    [[call NAME {JSON}]]   one call of that tool; its result is answered with "Result: " and its first line
    [[hang]]               some text, then silence until the client goes away
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

__all__ = ["HANGING", "FakeLlm", "Said"]

Object = dict[str, Any]
HANGING = "I am thinking about that"
_DIRECTIVE = re.compile(r"\[\[(say|think|call|hang)\s*(.*?)\]\]", re.DOTALL)
_REMINDER = "<system-reminder>"
_USAGE = {
    "input_tokens": 10,
    "output_tokens": 5,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
}


class Said(NamedTuple):
    """A request that the model got: its model, effort, messages and the names of its tools."""

    model: str
    effort: str | None
    messages: list[Object]
    tools: list[str]

    @property
    def text(self) -> str:
        """All that is said in the conversation, tool results included."""
        return "\n".join(_text(message.get("content")) for message in self.messages)


class FakeLlm:
    """The model's server, in a thread; entering starts it.

    Attributes:
        url: its base URL, for ``ANTHROPIC_BASE_URL``.
        said: the conversations that it was sent, oldest first.
        strays: requests for anything that it doesn't offer, by path.
    """

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.strays: list[str] = []
        self.stopping = threading.Event()
        llm = self

        class Handler(_Handler):
            owner = llm

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, name="fake llm", daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, said: Said) -> int:
        """Write a conversation down and return its number."""
        with self._lock:
            self.said.append(said)
            return len(self.said)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: FakeLlm
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""

    def do_HEAD(self) -> None:
        """Answer the reachability probe."""
        self._answer({}, body=False)

    def do_GET(self) -> None:
        """Nothing is offered here."""
        self._stray()

    def do_POST(self) -> None:
        """Answer a conversation."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path.endswith("/messages/count_tokens"):
            self._answer({"input_tokens": 10})
        elif path.endswith("/messages"):
            self._message(json.loads(body))
        else:
            self._stray()

    def _stray(self) -> None:
        self.owner.strays.append(self.path)
        self._answer({"type": "error", "error": {"type": "not_found_error", "message": self.path}}, 404)

    def _answer(self, document: Object, status: int = 200, *, body: bool = True) -> None:
        data = json.dumps(document).encode() if body else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _message(self, request: Object) -> None:
        # Claude Code puts messages of the role "system" between those of the conversation.
        messages = [message for message in request["messages"] if message["role"] in {"user", "assistant"}]
        offered: list[Object] = request.get("tools") or []
        tools = [str(tool["name"]) for tool in offered]
        config: Object = request.get("output_config") or {}
        effort: str | None = config.get("effort")
        said = Said(str(request["model"]), effort, messages, tools)
        number = self.owner.take(said)
        blocks, hang = _reply(said, number)
        stop = "tool_use" if blocks[-1]["type"] == "tool_use" else "end_turn"
        head: Object = {
            "id": f"msg_{number:06d}",
            "type": "message",
            "role": "assistant",
            "model": said.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _USAGE,
        }
        if not request.get("stream"):
            self._answer({**head, "content": blocks, "stop_reason": stop})
            return
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for event in _events(head, blocks, stop):
                if hang and event["type"] == "content_block_stop":
                    self._hang()
                    return
                self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        except ConnectionError:
            pass  # the agent cancelled

    def _hang(self) -> None:
        # Ends with the client, which closes the connection, or with the server.
        self.connection.settimeout(0.2)
        while not self.owner.stopping.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue


def _reply(said: Said, number: int) -> tuple[list[Object], bool]:
    content: object = said.messages[-1].get("content")
    whole: list[Object] = [{"type": "text", "text": content}]
    blocks = cast("list[Object]", content) if isinstance(content, list) else whole
    last = next((block for block in reversed(blocks) if not _is_reminder(block)), blocks[-1])
    if last["type"] == "tool_result":
        result = (_text(last.get("content")).strip().splitlines() or ["nothing"])[0]
        return [{"type": "text", "text": f"Result: {result}"}], False
    reply: list[Object] = []
    text, call, hang = "Hello from the script.", None, False
    for name, rest in _DIRECTIVE.findall(_text(last.get("text"))):
        if name == "say":
            text = rest
        elif name == "think":
            reply.append({"type": "thinking", "thinking": rest, "signature": "c2NyaXB0"})
        elif name == "hang":
            text, hang = HANGING, True
        else:
            tool, _, arguments = rest.partition(" ")
            if tool in said.tools:
                given: Object = json.loads(arguments)
                call = {"type": "tool_use", "id": f"toolu_{number:06d}", "name": tool, "input": given}
    reply.append({"type": "text", "text": text if call is None else "Let me do that."})
    return [*reply, call] if call is not None else reply, hang


def _is_reminder(block: Object) -> bool:
    return block["type"] == "text" and block["text"].lstrip().startswith(_REMINDER)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_text(item) for item in cast("list[object]", content))
    if isinstance(content, dict):
        block = cast("Object", content)
        return _text(block.get("text") or block.get("content") or "")
    return ""


def _events(head: Object, blocks: list[Object], stop: str) -> Iterator[Object]:
    yield {"type": "message_start", "message": head}
    for index, block in enumerate(blocks):
        start, deltas = _pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": stop, "stop_sequence": None},
        "usage": {"output_tokens": 5},
    }
    yield {"type": "message_stop"}


def _pieces(block: Object) -> tuple[Object, list[Object]]:
    if block["type"] == "text":
        text = block["text"]
        halves = text[: len(text) // 2], text[len(text) // 2 :]
        return {"type": "text", "text": ""}, [{"type": "text_delta", "text": half} for half in halves if half]
    if block["type"] == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}, [
            {"type": "thinking_delta", "thinking": block["thinking"]},
            {"type": "signature_delta", "signature": block["signature"]},
        ]
    arguments = json.dumps(block["input"])
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": arguments}]
