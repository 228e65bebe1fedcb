"""``python -m sandbox_agent.testing.relay SOCKET``: the process of a ScriptedAgent.

It is started by the server, and connects the server's pipes with the ScriptedAgent, which listens on the
socket in the process of the test. It imports little, to start fast.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading

__all__ = ["EXIT", "HEADER", "STDERR", "STDOUT"]

# What the ScriptedAgent sends: a frame's kind and the length of its body.
HEADER = struct.Struct(">BI")
STDOUT, STDERR, EXIT = 1, 2, 3


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _copy_stdin(connection: socket.socket) -> None:
    try:
        while data := os.read(0, 65_536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the ScriptedAgent has closed the connection


def main(path: str) -> int:
    """Relay until the ScriptedAgent closes the connection or says how to exit, and return the exit code."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError as error:
        sys.stderr.write(
            f"no ScriptedAgent listens on {path} ({error.strerror}): keep it open until the test has ended; "
            "with the pytest plugin, the test needs the fixture scripted_agent\n"
        )
        return 1
    threading.Thread(target=_copy_stdin, args=(connection,), daemon=True).start()
    frames = connection.makefile("rb")
    # The server or the ScriptedAgent may go at any time.
    with contextlib.suppress(OSError):
        while len(header := frames.read(HEADER.size)) == HEADER.size:
            kind, length = HEADER.unpack(header)
            body = frames.read(length)
            if kind == EXIT:
                return body[0]
            _write(1 if kind == STDOUT else 2, body)
    return 0


if __name__ == "__main__":
    # Exit without waiting for the thread that reads stdin.
    os._exit(main(sys.argv[1]))
