"""Bodies of the session routes; names are those of openapi-0.1-sessions.json, and ours beyond it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

__all__ = [
    "AgentError",
    "AgentModeInfo",
    "AgentModelInfo",
    "AgentModelsResponse",
    "AgentModesResponse",
    "CreateSessionRequest",
    "CreateSessionResponse",
    "EventsResponse",
    "MessageRequest",
    "PendingPermission",
    "PermissionListResponse",
    "PermissionReplyRequest",
    "PermissionRule",
    "QuestionReplyRequest",
    "SearchHit",
    "SearchResponse",
    "SessionInfo",
    "SessionListResponse",
    "TurnInfo",
    "TurnState",
    "UsageInfo",
]

TurnState: TypeAlias = Literal["accepted", "running", "done", "failed", "cancelled", "interrupted"]
PermissionReply: TypeAlias = Literal["once", "always", "reject"]


class _Body(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A body: camelCase members, absent ones are left out, unknown ones are ignored."""


class PermissionRule(_Body, kw_only=True):
    """What is answered to permission requests of a kind, or about files below a path.

    Attributes:
        reply: "allow", "reject" or "ask".
        kind: ACP's tool kind (read, edit, delete, move, search, execute, think, fetch, other); None: any.
        path: a glob over the tool call's absolute paths (``**`` over folders); None: any.
    """

    reply: Literal["allow", "reject", "ask"]
    kind: str | None = None
    path: str | None = None


class CreateSessionRequest(_Body, kw_only=True):
    """``POST /v1/sessions/{session_id}``.

    Attributes:
        agent: the agent's id.
        agent_mode: the agent's mode (session/set_mode).
        permission_mode: "ask" (and "default", "plan"), "acceptEdits", "allow" (and "bypass"), "reject".
        model: the model's id.
        variant: the model's variant, the agent's thought level.
        agent_version: accepted for clients of 0.1; the installed version runs.
        directory: where the agent works; the server's own folder where absent.
        title: for people.
        mcp_servers: ACP's mcpServers of session/new.
        permission_rules: looked at before the permission mode, first match wins.
        permission_timeout_seconds: a request that nobody answers in this time is rejected; None: never.
    """

    agent: str
    agent_mode: str | None = None
    permission_mode: str | None = None
    model: str | None = None
    variant: str | None = None
    agent_version: str | None = None
    directory: str | None = None
    title: str | None = None
    mcp_servers: list[dict[str, Any]] | None = None
    permission_rules: list[PermissionRule] | None = None
    permission_timeout_seconds: float | None = None


class AgentError(_Body, kw_only=True, rename=None):
    """Why a session isn't healthy; ``type`` is an error's name."""

    type: str
    message: str
    agent: str | None = None
    session_id: str | None = None
    details: Any = None


class CreateSessionResponse(_Body, kw_only=True):
    """The session is made; ``native_session_id`` is the agent's own id.

    What fails is a problem instead: this server never says ``healthy: false`` with an ``error``, as 0.1 did.
    """

    healthy: bool
    error: AgentError | None = None
    native_session_id: str | None = None


class UsageInfo(_Body, kw_only=True):
    """Tokens and money that the agent told of, summed; members that it never told are absent."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_read_tokens: int | None = None
    cached_write_tokens: int | None = None
    thought_tokens: int | None = None
    context_used: int | None = None
    context_size: int | None = None
    cost: dict[str, float] | None = None  # by currency


class TurnInfo(_Body, kw_only=True):
    """A message and what became of it; times are milliseconds since the epoch."""

    turn_id: str
    state: TurnState
    created_at: int
    started_at: int | None = None
    ended_at: int | None = None
    stop_reason: str | None = None
    error: str | None = None
    idempotency_key: str | None = None
    usage: UsageInfo | None = None


class SessionInfo(_Body, kw_only=True):
    """A session.

    Attributes:
        created_at: milliseconds since the epoch.
        updated_at: when its newest event came.
        managed: the server drives it; False where an SDK does, over ``/v1/acp``.
        first_sequence: the oldest event that is still there; absent while that is the first.
        turns: the newest turns, oldest of them first; only where one session is asked for.
    """

    session_id: str
    agent: str
    agent_mode: str
    permission_mode: str
    ended: bool
    event_count: int
    created_at: int
    updated_at: int
    directory: str | None = None
    model: str | None = None
    native_session_id: str | None = None
    title: str | None = None
    variant: str | None = None
    managed: bool
    server_id: str | None = None
    first_sequence: int | None = None
    usage: UsageInfo | None = None
    turns: list[TurnInfo] | None = None


class SessionListResponse(_Body, kw_only=True):
    """``GET /v1/sessions``; ``next_cursor`` is absent at the end."""

    sessions: list[SessionInfo]
    next_cursor: str | None = None


class EventsResponse(_Body, kw_only=True):
    """``GET …/events``; the events are UniversalEvents as they were stored."""

    events: list[msgspec.Raw]
    has_more: bool


class MessageRequest(_Body, kw_only=True):
    """``POST …/messages``: a text, or ACP content blocks."""

    message: str | list[dict[str, Any]]


class PermissionReplyRequest(_Body, kw_only=True):
    """``POST …/permissions/{id}/reply``."""

    reply: PermissionReply


class QuestionReplyRequest(_Body, kw_only=True):
    """``POST …/questions/{id}/reply``: for each question the chosen options."""

    answers: list[list[str]]


class PendingPermission(_Body, kw_only=True):
    """A permission or question that waits for an answer.

    Attributes:
        kind: which of the two it is.
        sequence: of its permission.requested or question.requested event.
        metadata: that event's.
    """

    session_id: str
    permission_id: str
    kind: Literal["permission", "question"]
    agent: str
    action: str
    sequence: int
    requested_at: int
    expires_at: int | None = None
    metadata: Any = None


class PermissionListResponse(_Body, kw_only=True):
    """``GET /v1/permissions``: oldest first."""

    permissions: list[PendingPermission]


class SearchHit(_Body, kw_only=True):
    """Where a text was found: ``snippet`` has the words between ``[`` and ``]``."""

    session_id: str
    agent: str
    sequence: int
    time: int
    snippet: str
    title: str | None = None


class SearchResponse(_Body, kw_only=True):
    """``GET /v1/search``: best first."""

    hits: list[SearchHit]
    has_more: bool


class AgentModeInfo(_Body, kw_only=True, omit_defaults=False):
    """A mode that an agent offers."""

    id: str
    name: str
    description: str


class AgentModesResponse(_Body, kw_only=True):
    """``GET /v1/agents/{agent}/modes``."""

    modes: list[AgentModeInfo]


class AgentModelInfo(_Body, kw_only=True):
    """A model that an agent offers, and the variants (thought levels) that it may run in."""

    id: str
    name: str | None = None
    variants: list[str] | None = None
    default_variant: str | None = None


class AgentModelsResponse(_Body, kw_only=True):
    """``GET /v1/agents/{agent}/models``."""

    models: list[AgentModelInfo]
    default_model: str | None = None
