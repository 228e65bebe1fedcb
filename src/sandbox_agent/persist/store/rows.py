"""What the server's store keeps, row by row; times are milliseconds since the epoch."""

from __future__ import annotations

from typing import Literal

import msgspec

from sandbox_agent.wire.records import Sender

# The key of envelopes that belong to a connection rather than a session (initialize, …).
NO_SESSION = 0


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

    ``connection_id`` is the epoch of the connection's feed.
    """

    key: int
    index: int
    time: int
    sender: Sender
    connection_id: str
    data: bytes


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
