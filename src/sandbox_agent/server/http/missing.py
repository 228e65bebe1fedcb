"""How every route says that a session is not there."""

from __future__ import annotations

from sandbox_agent.errors import ServerSessionNotFoundError

__all__ = ["no_session"]


def no_session(session_id: str) -> ServerSessionNotFoundError:
    """Return the error for a session that the server does not have."""
    return ServerSessionNotFoundError(
        f"session not found: {session_id}: it was deleted or never made", sessionId=session_id
    )
