"""The histories that a writer knows, so that it notices when the server has lost one."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

# Only the sessions written last are remembered.
_MAX_SESSIONS: Final = 10_000


class History(NamedTuple):
    """The life of a session's history (when it began, by the server's clock), and its last index."""

    life: bytes
    last: int


_UNKNOWN: Final = History(b"", 0)


class KnownHistories:
    """The histories that this process has written.

    If a history is shorter than before, or gone, the server has lost it: it was flushed, or failed over to a
    server without it. A history with another life was deleted and begun again, which is no loss.

    Args:
        ttl: after how many seconds without a write a session expires; 0: never.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._known: dict[str, tuple[History, float]] = {}

    def get(self, session_id: str) -> History:
        """Return what is known of a session."""
        known, touched = self._known.get(session_id, (_UNKNOWN, 0.0))
        if self._ttl and known.life and time.monotonic() - touched >= self._ttl:
            del self._known[session_id]
            return _UNKNOWN
        return known

    def note_write(self, session_id: str, life: bytes, last: int) -> None:
        """Remember an acknowledged write."""
        old = self._known.pop(session_id, None)
        if old is not None and old[0].life == life:
            last = max(last, old[0].last)
        elif len(self._known) >= _MAX_SESSIONS:
            del self._known[next(iter(self._known))]
        self._known[session_id] = (History(life, last), time.monotonic())

    def replace(self, session_id: str, life: bytes, last: int) -> None:
        """Accept the server's history: the session was claimed, or an event moved."""
        self._known.pop(session_id, None)
        self.note_write(session_id, life, last)

    def forget(self, session_id: str) -> None:
        """Remove what is known of a session."""
        self._known.pop(session_id, None)
