"""The server's store: sessions, envelopes, events, turns and permissions, and how they are found again."""

from __future__ import annotations

from sandbox_agent.persist.store.base import SessionStore
from sandbox_agent.persist.store.rows import (
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SearchRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
)

__all__ = [
    "Changes",
    "EnvelopeRow",
    "EventRow",
    "PermissionRow",
    "SearchRow",
    "SessionRow",
    "SessionStore",
    "SnapshotRow",
    "TextRow",
    "TurnRow",
]
