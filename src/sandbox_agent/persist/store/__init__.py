"""The server's store: sessions, envelopes, events, turns and permissions, and how they are found again.

Times are milliseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

import msgspec

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.records import Sender

__all__ = [
    "LARGE_BYTES",
    "NO_SESSION",
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
    "key_before",
]

# The key of envelopes that belong to a connection rather than a session (initialize, …).
NO_SESSION = 0
# Only data of this size is looked for in earlier envelopes.
LARGE_BYTES = 16 * 1024


class SessionRow(msgspec.Struct, kw_only=True):
    """A session.

    Attributes:
        key: its number in this store, from 1; never used again.
        session_id: its name on the wire, unique.
        native_session_id: the agent's name for it, None until it has one.
        server_id: the connection that it was last seen on.
        managed: the server drives it.
        agent_mode: "" where unknown, as ``permission_mode``.
        ended: it was terminated.
        first_sequence: the oldest event that is kept.
        last_sequence: the newest event; 0 while there are none.
        last_envelope: the index of the newest envelope; 0 while there are none.
        usage: JSON of a wire.sessions.UsageInfo, or None.
        settings: JSON of what it was made with (CreateSessionRequest), or None.
    """

    key: int
    session_id: str
    agent: str
    created_at: int
    updated_at: int
    managed: bool = False
    native_session_id: str | None = None
    server_id: str | None = None
    directory: str | None = None
    title: str | None = None
    model: str | None = None
    agent_mode: str = ""
    permission_mode: str = ""
    variant: str | None = None
    ended: bool = False
    first_sequence: int = 1
    last_sequence: int = 0
    last_envelope: int = 0
    usage: bytes | None = None
    settings: bytes | None = None


class EnvelopeRow(msgspec.Struct, gc=False):
    """An envelope as the agent wrote or read it; ``index`` is contiguous from 1 in its session.

    Attributes:
        connection_id: the epoch of the connection's feed.
        same_as: an earlier envelope of the session that may have the same data, so that a store can keep that
            once; 0 if none is known. Stores return 0.
    """

    key: int
    index: int
    time: int
    sender: Sender
    connection_id: str
    data: bytes
    same_as: int = 0


class EventRow(msgspec.Struct, gc=False):
    """A universal event: ``data`` is the whole of it as JSON, without ``raw``.

    ``envelope`` is the index of the envelope that it was made from; 0 for other events.
    """

    key: int
    sequence: int
    time: int
    type: str
    envelope: int
    data: bytes


class SnapshotRow(msgspec.Struct, gc=False):
    """A projector's snapshot (JSON) after the envelope of that index and the event of that sequence."""

    key: int
    envelope: int
    sequence: int
    data: bytes


class TextRow(msgspec.Struct, gc=False):
    """What is searched: the text of a completed item, at its event's sequence."""

    key: int
    sequence: int
    time: int
    text: str


class TurnRow(msgspec.Struct, kw_only=True):
    """A message of a managed session, or a prompt of another one.

    Attributes:
        number: its place in the session, from 1.
        turn_id: as in turn.* events; unique in its session.
        state: a wire.sessions.TurnState.
        idempotency_key: the client's, unique in its session.
        digest: SHA-256 of the prompt, to detect another body under the same key.
        prompt: JSON of its ACP content blocks.
        error: why it failed, in one line.
        usage: JSON of a wire.sessions.UsageInfo, or None.
    """

    key: int
    number: int
    turn_id: str
    state: str
    created_at: int
    prompt: bytes
    digest: bytes = b""
    idempotency_key: str | None = None
    started_at: int | None = None
    ended_at: int | None = None
    stop_reason: str | None = None
    error: str | None = None
    first_sequence: int | None = None
    last_sequence: int | None = None
    usage: bytes | None = None


class PermissionRow(msgspec.Struct, kw_only=True):
    """Something that the agent asked for.

    Attributes:
        permission_id: as in its events; unique in its session.
        kind: permission or question.
        request_id: JSON of the agent's JSON-RPC id.
        connection_id: the connection it was asked on.
        sequence: of the event that asked.
        metadata: JSON of that event's data.
        answered: a PermissionStatus or QuestionStatus; None while it waits.
    """

    key: int
    permission_id: str
    kind: Literal["permission", "question"]
    request_id: bytes
    connection_id: str
    sequence: int
    action: str
    metadata: bytes
    requested_at: int
    expires_at: int | None = None
    answered: str | None = None
    answered_at: int | None = None
    answered_by: str | None = None


class SearchRow(msgspec.Struct):
    """A hit; ``snippet`` has the words between ``[`` and ``]``."""

    session_id: str
    agent: str
    title: str | None
    sequence: int
    time: int
    snippet: str


class Changes(msgspec.Struct):
    """Rows that are stored in one transaction. Sessions, turns and permissions replace theirs."""

    sessions: list[SessionRow] = []
    snapshots: list[SnapshotRow] = []
    envelopes: list[EnvelopeRow] = []
    events: list[EventRow] = []
    texts: list[TextRow] = []
    turns: list[TurnRow] = []
    permissions: list[PermissionRow] = []


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
        """Erase a session, which is out of sight at once: rows, index and what the file still holds of them.

        If it is interrupted, or traces of it can't be removed from the file in some seconds, as another
        process reads it (which is logged as a warning), ``finish_deletes`` does the rest.
        """
        ...

    async def finish_deletes(self) -> None:
        """Continue deletions and expiries that were interrupted, or have left traces in a file."""
        ...

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares."""
        ...

    async def hide(self, key: int) -> None:
        """Hide a session that is to be deleted; if it is not, ``finish_deletes`` deletes it."""
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


def key_before(cursor: str | None, largest: int) -> int:
    """Return the key that the keys of the page are below.

    Args:
        cursor: as the page before gave it; None is the first page's.
        largest: the largest key of all.

    Raises:
        InvalidRequestError: it is no such cursor.
    """
    if cursor is None:
        return largest
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= len(str(largest))):
        raise InvalidRequestError(
            f"the cursor {cursor[:40]!r} is not one of this server's: give the nextCursor of the page before"
        )
    return min(int(cursor), largest)
