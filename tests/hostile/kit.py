"""Raw connections for clients that break the rules, and what a server process uses."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from tests.support.servers import ServerProcess

__all__ = ["connect", "cpu_seconds", "read_all", "read_status", "resident_bytes", "send_until_closed"]


def connect(server: ServerProcess, data: bytes = b"") -> socket.socket:
    """Return a connection over which this was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            found += data
    return found


def read_status(connection: socket.socket) -> int:
    """Return the status of the response with which the server closes the connection; 0 without one."""
    answer = read_all(connection)
    assert not answer or b"application/problem+json" in answer
    return int(answer.split(b" ", 2)[1]) if answer else 0


def send_until_closed(connection: socket.socket, data: bytes, most: int) -> int:
    """Send data again and again until the server closes the connection; return how much it was."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            connection.sendall(data)
            sent += len(data)
    return sent


def resident_bytes(pid: int) -> int:
    """Return how much memory a process uses."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def cpu_seconds(pid: int) -> float:
    """Return how long a process has used a CPU, as clock_getcpuclockid(3) has it on Linux."""
    return time.clock_gettime((~pid << 3) | 2)
