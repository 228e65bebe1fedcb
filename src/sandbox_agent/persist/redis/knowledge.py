"""What a writer knows of histories, so that a server that lost one is noticed."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

__all__ = ["Knowledge", "Known"]

# Sessions that are remembered; those written last.
_MAX_SESSIONS: Final = 10_000


class Known(NamedTuple):
    """The life of a session's history (the server's word for when it began), and its last index."""

    life: bytes
    last: int


_NOTHING: Final = Known(b"", 0)


class Knowledge:
    """The histories that this process has written to.

    A history that is shorter than it was, or gone, was lost by the server: it was flushed, or failed over
    to one that has not got everything. One that began later was deleted and made anew, which is no loss.

    Args:
        ttl: after how many seconds an untouched session expires; 0: never.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._known: dict[str, tuple[Known, float]] = {}

    def of(self, session_id: str) -> Known:
        """Return what is known."""
        known, touched = self._known.get(session_id, (_NOTHING, 0.0))
        if self._ttl and known.life and time.monotonic() - touched >= self._ttl:
            del self._known[session_id]
            return _NOTHING
        return known

    def note(self, session_id: str, life: bytes, last: int) -> None:
        """Remember an acknowledged write."""
        old = self._known.pop(session_id, None)
        if old is not None and old[0].life == life:
            last = max(last, old[0].last)
        elif len(self._known) >= _MAX_SESSIONS:
            del self._known[next(iter(self._known))]
        self._known[session_id] = (Known(life, last), time.monotonic())

    def replace(self, session_id: str, life: bytes, last: int) -> None:
        """Take what the server has as it is: the session was claimed, or an event moved."""
        self._known.pop(session_id, None)
        self.note(session_id, life, last)

    def forget(self, session_id: str) -> None:
        """Know nothing of a session."""
        self._known.pop(session_id, None)
