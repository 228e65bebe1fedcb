"""What sessions that nobody named are called, and what is told of a new one."""

from __future__ import annotations

import re
from typing import Any

from sandbox_agent.persist.store import SessionRow

__all__ = ["session_name", "started_metadata"]

_ODD = re.compile(r"[^A-Za-z0-9._~:@-]")
MAX_NAME = 200


def session_name(native: str) -> str:
    """Return the agent's name of a session as one that can stand in a path."""
    name = _ODD.sub("_", native)[:MAX_NAME]
    return name if name.strip(".") else f"session-{name.replace('.', '_')}"


def started_metadata(row: SessionRow) -> dict[str, Any]:
    """Return the metadata of a session's first event."""
    told = {
        "agent": row.agent,
        "managed": row.managed,
        "server_id": row.server_id,
        "directory": row.directory,
        "title": row.title,
        "model": row.model,
        "agent_mode": row.agent_mode or None,
        "permission_mode": row.permission_mode or None,
        "variant": row.variant,
    }
    return {name: value for name, value in told.items() if value is not None}
