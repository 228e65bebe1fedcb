"""Errors that several rooms of the server raise with the same text."""

from __future__ import annotations

import re

from sandbox_agent.errors import ServerSessionNotFoundError, SessionAlreadyExistsError

# A quote that is part of a path is followed by more of it.
_PATH = re.compile(r" '/(?:[^']|'(?=[^\s:,;.)]))*'")


def session_not_found(session_id: str) -> ServerSessionNotFoundError:
    """Return the error for a session that the server does not have."""
    return ServerSessionNotFoundError(
        f"session not found: {session_id}: it was deleted or never created", sessionId=session_id
    )


def session_exists(session_id: str, how: str = "") -> SessionAlreadyExistsError:
    """Return the error for the creation of a session whose name is used; ``how`` says more about it."""
    return SessionAlreadyExistsError(f"session '{session_id}' exists{how}: use it, or choose another name")


def without_path(text: str) -> str:
    """Return the text of an error of the store without the store's path, which is for the log only."""
    return _PATH.sub("", text)
