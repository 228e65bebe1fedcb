"""What the server asks of its store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from sandbox_agent.persist.store.rows import (
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SearchRow,
    SessionRow,
    SnapshotRow,
    TurnRow,
)


class SessionStore(Protocol):
    """Every method raises PersistError when the store failed; then nothing of that call is stored.

    One process owns a store. Reads don't wait for writes.
    """

    @property
    def trouble(self) -> str | None:
        """Why nothing can be stored now, in one line; None while the store works."""
        ...

    async def check(self) -> None:
        """Update ``trouble``, in a store that does not watch its connection by itself."""
        ...

    async def close(self) -> None:
        """Release the store. Safe to call twice."""
        ...

    async def open(self) -> None:
        """Make or migrate the tables.

        Raises:
            PersistError: it can't be opened, or a newer version made it.
        """
        ...

    async def commit(self, changes: Changes) -> None:
        """Store all rows or none; durable when it returns."""
        ...

    async def next_key(self) -> int:
        """Return a session key that was never used here."""
        ...

    async def session(self, session_id: str) -> SessionRow | None:
        """Return the session of that name."""
        ...

    async def native_session(self, agent: str, native_session_id: str) -> SessionRow | None:
        """Return the newest session that the agent knows under that name."""
        ...

    async def sessions(self, *, limit: int, cursor: str | None = None) -> tuple[list[SessionRow], str | None]:
        """Return a page of sessions, newest first, and the cursor of the next page.

        Raises:
            InvalidRequestError: the cursor is not one of this store's.
        """
        ...

    async def events(
        self, key: int, *, after: int, limit: int, max_bytes: int, include_raw: bool = False
    ) -> list[EventRow]:
        """Return events with ``sequence > after``, at least one if there are any.

        With ``include_raw`` their data has a member ``raw``: the envelope that they were made from.
        """
        ...

    async def envelopes(self, key: int, *, after: int, limit: int) -> list[EnvelopeRow]:
        """Return envelopes with ``index > after``."""
        ...

    async def newest_envelopes(self, key: int, *, limit: int) -> list[EnvelopeRow]:
        """Return the newest envelopes, oldest of them first."""
        ...

    async def snapshot(self, key: int) -> SnapshotRow | None:
        """Return the session's newest snapshot."""
        ...

    async def turns(self, key: int, *, limit: int) -> list[TurnRow]:
        """Return the newest turns, oldest of them first."""
        ...

    async def turn(self, key: int, *, turn_id: str = "", idempotency_key: str = "") -> TurnRow | None:
        """Return the turn of that id, or of that key."""
        ...

    async def open_turns(self) -> list[tuple[SessionRow, TurnRow]]:
        """Return all turns that are accepted or running, by session and number."""
        ...

    async def permission(self, key: int, permission_id: str) -> PermissionRow | None:
        """Return a permission or question."""
        ...

    async def pending_permissions(self, *, limit: int) -> list[tuple[SessionRow, PermissionRow]]:
        """Return what waits for an answer, oldest first."""
        ...

    async def search(
        self,
        query: str,
        *,
        limit: int,
        offset: int = 0,
        agent: str | None = None,
        session_id: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> list[SearchRow]:
        """Return where the words are found, best first; ``since <= time < until``.

        The query is words, all of which must be found, and "phrases"; nothing in it is an error.
        """
        ...

    async def delete(self, key: int) -> None:
        """Erase a session: rows, index and what the file still holds of them.

        If traces of it can't be removed from the file in some seconds, as another process reads it, that
        is logged as a warning and done later; the session is gone in any case.
        """
        ...

    async def finish_deletes(self) -> None:
        """Continue deletions and expiries that were interrupted, or have left traces in a file."""
        ...

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares."""
        ...

    async def hide(self, key: int) -> None:
        """Take a session out of sight, to be deleted; one that stays so is, when the store is opened next."""
        ...

    async def expire(
        self,
        *,
        before: int | None = None,
        max_bytes: int | None = None,
        retire: Callable[[SessionRow], Awaitable[bool]] | None = None,
    ) -> Sequence[SessionRow]:
        """Erase events and envelopes older than that, or the oldest until the store is that small.

        Commits continue between its slices. A session whose turn is open is left alone. ``first_sequence`` of
        a session that lost some says from where it has them; one that lost all and has ended or is not
        managed is deleted.

        Args:
            before: erase what is older, in milliseconds since the epoch.
            max_bytes: erase until no more is used.
            retire: called before a session is deleted; it hides a session that is in use, or returns False.

        Returns:
            The sessions that lost some.
        """
        ...
