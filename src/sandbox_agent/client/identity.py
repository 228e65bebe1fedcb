"""The names of clients, and of the processes that they belong to."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

from sandbox_agent.wire.records import SessionRecord

# Between a connection's id and what distinguishes a client that attached to it.
ATTACHED = "~"


def connection_of(connection_id: str) -> str:
    """Return the id of the connection that was opened, from that of a client that attached to it."""
    return connection_id.partition(ATTACHED)[0]


def is_same_connection(one: SessionRecord, other: SessionRecord) -> bool:
    """Return whether two states of a session's record name the same connection."""
    return connection_of(one.last_connection_id) == connection_of(other.last_connection_id)


def server_id_of(agent: str, connection_id: str) -> str:
    """Return the id of a connection on its server."""
    return f"sdk-{agent}-{connection_of(connection_id)}"


def client_name(connection_id: str) -> str:
    """Return the name of the client that has this connection id."""
    return f"sdk-{connection_id}"


def describe_process() -> str:
    """Return a new text that identifies a client of this process: host, pid, place and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{_place()}:{secrets.token_hex(8)}"


def process_name(holder: object) -> str:
    """Return the part of a holder's description that people read."""
    parts = str(holder or "").split(":")
    return f"process {parts[1]} on {parts[0]}" if len(parts) == 4 else "an unknown process"


def has_ended(holder: object) -> bool:
    """Return whether a process has certainly ended. Of processes on other machines that is unknown."""
    parts = str(holder or "").split(":")
    if len(parts) != 4 or not parts[1].isdecimal() or not parts[2] or parts[2] != _place():
        return False
    pid = int(parts[1])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    with contextlib.suppress(OSError):
        # Killed, but its parent has not asked for its exit status yet.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    return False


def _place() -> str:
    """Return what identifies the pids of this machine since its start; empty where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
