"""The connection of a ScriptedAgent to its process."""

from __future__ import annotations

import contextlib
import socket

from sandbox_agent.agents.mock.peer import Peer
from sandbox_agent.testing.relay import EXIT, HEADER, STDERR, STDOUT

__all__ = ["ScriptedPeer"]


class ScriptedPeer(Peer):
    """Writes to the client by way of the relay. When the relay has gone, what is written is lost."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(-1)
        self._connection = connection

    def _write(self, data: bytes) -> None:
        self._send(STDOUT, data)

    def write_stderr(self, text: str) -> None:
        """Write to the stderr of the process."""
        with self._lock:
            self._send(STDERR, text.encode())

    def exit(self, code: int) -> None:
        """End the process with an exit code.

        Raises:
            ValueError: The code is not one of 0 to 255.
        """
        if not 0 <= code <= 255:
            raise ValueError(f"an exit code is a number from 0 to 255, not {code}")
        with self._lock:
            self._send(EXIT, bytes([code]))

    def _send(self, kind: int, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._connection.sendall(HEADER.pack(kind, len(data)) + data)
