"""Errors that several rooms of the server raise with the same text."""

from __future__ import annotations

from sandbox_agent.errors import ServerSessionNotFoundError, SessionAlreadyExistsError


def session_not_found(session_id: str) -> ServerSessionNotFoundError:
    """Return the error for a session that the server does not have."""
    return ServerSessionNotFoundError(
        f"session not found: {session_id}: it was deleted or never created", sessionId=session_id
    )


def session_exists(session_id: str, how: str = "") -> SessionAlreadyExistsError:
    """Return the error for the creation of a session whose name is used; ``how`` says more about it."""
    return SessionAlreadyExistsError(f"session '{session_id}' exists{how}: use it, or choose another name")
