"""A running turn: what a command can send, request and wait for."""

from __future__ import annotations

import os
import queue
import threading

from sandbox_agent.agents.mock.peer import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandbox_agent.agents.mock.peer import Peer
    from sandbox_agent.agents.mock.sessions import Session

    JsonObject = dict[str, Any]

# A text of any length is streamed in about this many chunks.
_CHUNKS = 12
_MIN_CHUNK = 8


class Cancelled(Exception):  # noqa: N818 - an outcome, not an error
    """The client cancelled the turn."""


class Turn:
    """A prompt, from its request to its response.

    Attributes:
        session: The session of the prompt.
        peer: The connection to the client.
        cancelled: Set when the client cancels.
        stop_reason: The ``stopReason`` of the prompt's response, unless the client cancels.
        usage: The ``usage`` of the prompt's response, or None to omit it.
        held: What the turn keeps in memory.
    """

    def __init__(self, peer: Peer, session: Session, request_id: object) -> None:
        self.peer = peer
        self.session = session
        self.request_id = request_id
        self.cancelled: threading.Event = threading.Event()
        self.stop_reason: str = "end_turn"
        self.usage: JsonObject | None = None
        self.held = b""
        self._answers: queue.SimpleQueue[JsonObject | None] = queue.SimpleQueue()
        self._message_id = _new_id("msg")

    def update(self, kind: str, /, *, keep: bool = True, **fields: Any) -> None:
        """Send a session/update. With ``keep`` it is also stored for session/load."""
        self.check()
        update = {"sessionUpdate": kind, **fields}
        if keep:
            self.session.record(update)
        self.peer.notify("session/update", {"sessionId": self.session.id, "update": update})

    def say(self, text: str, kind: str = "agent_message_chunk") -> None:
        """Stream a text in several chunks and store it as one."""
        size = max(_MIN_CHUNK, -(-len(text) // _CHUNKS))
        for start in range(0, len(text), size):
            self.chunk(text[start : start + size], kind)
        self.keep_text(text, kind)

    def chunk(self, text: str, kind: str = "agent_message_chunk") -> None:
        """Send one chunk without storing it."""
        content = {"type": "text", "text": text}
        self.update(kind, keep=False, content=content, messageId=self._message_id)

    def keep_text(self, text: str, kind: str = "agent_message_chunk") -> None:
        """Store a text for session/load without sending it."""
        content = {"type": "text", "text": text}
        self.session.record({"sessionUpdate": kind, "content": content, "messageId": self._message_id})

    def next_message(self) -> None:
        """Start a new message."""
        self._message_id = _new_id("msg")

    def tool_call_id(self) -> str:
        """Return a new tool call id."""
        return _new_id("call")

    def ask(self, method: str, params: list[JsonObject]) -> list[JsonObject]:
        """Send requests to the client, all at once, and return the responses in the same order.

        Raises:
            Cancelled: The client cancelled the turn before all responses arrived.
        """
        self.check()
        own = {"sessionId": self.session.id}
        ids = [self.peer.request(method, {**own, **each}, self._answers) for each in params]
        responses: dict[object, JsonObject] = {}
        while len(responses) < len(ids):
            response = self._answers.get()
            if response is None:
                self.peer.forget(ids)
                raise Cancelled
            responses[response["id"]] = response
        return [responses[request_id] for request_id in ids]

    def cancel(self) -> None:
        """Cancel the turn and wake the command that waits."""
        self.cancelled.set()
        self._answers.put(None)

    def check(self) -> None:
        """Raise Cancelled if the client cancelled."""
        if self.cancelled.is_set():
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Wait, or raise Cancelled as soon as the client cancels."""
        if self.cancelled.wait(seconds):
            raise Cancelled

    def template(self) -> tuple[bytes, bytes]:
        """Return the parts of a chunk's line before and after its text, for bulk writing."""
        update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "\0"}}
        params = {"sessionId": self.session.id, "update": update}
        line = encode({"jsonrpc": "2.0", "method": "session/update", "params": params})
        before, _, after = line.partition(b"\\u0000")
        return before, after + b"\n"


def _new_id(prefix: str) -> str:
    return f"{prefix}_{os.urandom(8).hex()}"
