"""Bodies of the session routes: the fields of openapi-0.1-sessions.json, and additional ones."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from sandbox_agent.wire.api import Body
from sandbox_agent.wire.serial import to_time

TurnState: TypeAlias = Literal["accepted", "running", "done", "failed", "cancelled", "interrupted"]
PermissionReply: TypeAlias = Literal["once", "always", "reject"]

# Limits that the server checks, with errors of its own; here they are only part of the schema.
MAX_TEXT = 4096
MAX_BLOCKS = 10_000
MAX_RULES = 1000
MAX_OPTIONS = 256
MAX_GLOB = 4096
TOOL_KINDS = ("read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other")

_Text: TypeAlias = Annotated[str, Meta(extra_json_schema={"maxLength": MAX_TEXT})]
_Name: TypeAlias = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_TEXT})]
_Glob: TypeAlias = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_GLOB})]
_Kind: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": list(TOOL_KINDS)})]
_Seconds: TypeAlias = Annotated[float, Meta(extra_json_schema={"minimum": 0, "exclusiveMinimum": True})]
_Message: TypeAlias = Annotated[str, Meta(extra_json_schema={"minLength": 1})]
_Event: TypeAlias = Annotated[
    msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/UniversalEvent"})
]
_Envelope: TypeAlias = Annotated[
    msgspec.Raw, Meta(extra_json_schema={"type": "object", "additionalProperties": True})
]


class PermissionRule(Body, kw_only=True):
    """A rule that answers permission requests by tool kind and path.

    Attributes:
        reply: "allow", "reject" or "ask".
        kind: ACP's tool kind (read, edit, delete, move, search, execute, think, fetch, other); None: any.
        path: a glob for the tool call's absolute paths, in which ``**`` matches folders; None: any.
    """

    reply: Literal["allow", "reject", "ask"]
    kind: _Kind | None = None
    path: _Glob | None = None


class CreateSessionRequest(Body, kw_only=True):
    """``POST /v1/sessions/{session_id}``.

    Attributes:
        agent: the agent's id.
        agent_mode: the agent's mode (session/set_mode).
        permission_mode: "ask", "accept_edits", "allow", "plan", "read_only", or "reject"; names of the 0.1
            API are "default" (ask), "acceptEdits" and "bypass" (allow).
        model: the model's id.
        variant: the model's variant, the agent's thought level.
        config_options: values of the agent's other config options, by id.
        agent_version: accepted for clients of 0.1; the installed version runs.
        directory: the agent's working directory; the server's own working directory if absent.
        title: shown to users.
        additional_directories: more directories that the agent may work in, absolute paths.
        mcp_servers: ACP's mcpServers of session/new.
        env: variables of the session's agent, besides those that it inherits; responses have only the names.
        permission_rules: applied before the permission mode; the first rule that matches wins.
        permission_timeout_seconds: the time after which an unanswered request is rejected; None: never.
    """

    agent: _Name
    agent_mode: _Text | None = None
    permission_mode: _Text | None = None
    model: _Text | None = None
    variant: _Text | None = None
    config_options: (
        Annotated[dict[str, str | bool], Meta(extra_json_schema={"maxProperties": MAX_OPTIONS})] | None
    ) = None
    agent_version: _Text | None = None
    directory: _Text | None = None
    title: _Text | None = None
    additional_directories: list[_Text] | None = None
    mcp_servers: list[dict[str, Any]] | None = None
    env: dict[str, str] | None = None
    permission_rules: (
        Annotated[list[PermissionRule], Meta(extra_json_schema={"maxItems": MAX_RULES})] | None
    ) = None
    permission_timeout_seconds: _Seconds | None = None


class AgentError(Body, kw_only=True, rename=None):
    """Why a session is not healthy; ``type`` is an error's name."""

    type: str
    message: str
    agent: str | None = None
    session_id: str | None = None
    details: Any = None


class CreateSessionResponse(Body, kw_only=True):
    """The created session; ``native_session_id`` is the agent's own id.

    ``session_id`` is another id than the requested one if the Idempotency-Key had created that session
    before. A failure is a problem document instead: unlike 0.1, this server never sends ``healthy: false``.
    """

    healthy: bool
    error: AgentError | None = None
    native_session_id: str | None = None
    session_id: str | None = None


class UsageInfo(Body, kw_only=True):
    """The sums of the tokens and costs that the agent reported; what it never reported is absent."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_read_tokens: int | None = None
    cached_write_tokens: int | None = None
    thought_tokens: int | None = None
    context_used: int | None = None
    context_size: int | None = None
    cost: dict[str, float] | None = None  # by currency


class TurnInfo(Body, kw_only=True):
    """A message and the state of its turn; times are milliseconds since the epoch."""

    turn_id: str
    state: TurnState
    created_at: int
    started_at: int | None = None
    ended_at: int | None = None
    stop_reason: str | None = None
    error: str | None = None
    idempotency_key: str | None = None
    usage: UsageInfo | None = None

    @property
    def created_time(self) -> datetime:
        """``created_at`` as a datetime in UTC."""
        return to_time(self.created_at)

    @property
    def started_time(self) -> datetime | None:
        """``started_at`` as a datetime in UTC, or None."""
        return None if self.started_at is None else to_time(self.started_at)

    @property
    def ended_time(self) -> datetime | None:
        """``ended_at`` as a datetime in UTC, or None."""
        return None if self.ended_at is None else to_time(self.ended_at)


class SessionInfo(Body, kw_only=True):
    """A session.

    Attributes:
        created_at: milliseconds since the epoch.
        updated_at: the time of its newest event.
        managed: True if the server drives the session, False if an SDK does, over ``/v1/acp``.
        first_sequence: the sequence of the oldest stored event; absent while that is 1.
        env: the names of the variables that the session was created with; only in the response of one
            session.
        turns: the newest turns, oldest first; only in the response of one session.
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
    env: list[str] | None = None
    turns: list[TurnInfo] | None = None

    @property
    def created_time(self) -> datetime:
        """``created_at`` as a datetime in UTC."""
        return to_time(self.created_at)

    @property
    def updated_time(self) -> datetime:
        """``updated_at`` as a datetime in UTC."""
        return to_time(self.updated_at)


class SessionListResponse(Body, kw_only=True):
    """``GET /v1/sessions``; ``next_cursor`` is absent on the last page."""

    sessions: list[SessionInfo]
    next_cursor: str | None = None


class EventsResponse(Body, kw_only=True):
    """``GET …/events``; the events are UniversalEvents, as stored."""

    events: list[_Event]
    has_more: bool


class SessionEnvelope(Body, kw_only=True):
    """An envelope that the server has recorded.

    Attributes:
        index: its place in the session, from 1 without gaps.
        sender: who sent it.
        connection_id: the epoch of the connection's feed, as in the ``Sandbox-Agent-Feed-Epoch`` header.
        time: when it was read or written, in Unix milliseconds.
        envelope: the JSON-RPC message as the agent wrote or read it.
    """

    index: int
    sender: Literal["client", "agent"]
    connection_id: str
    time: int
    envelope: _Envelope


class EnvelopesResponse(Body, kw_only=True):
    """``GET …/envelopes``; ``last_index`` is that of the session's newest envelope."""

    envelopes: list[SessionEnvelope]
    has_more: bool
    last_index: int


class MessageRequest(Body, kw_only=True):
    """``POST …/messages``: a text, or ACP content blocks."""

    message: (
        _Message
        | Annotated[list[dict[str, Any]], Meta(extra_json_schema={"minItems": 1, "maxItems": MAX_BLOCKS})]
    )


class PermissionReplyRequest(Body, kw_only=True):
    """``POST …/permissions/{id}/reply``."""

    reply: PermissionReply


class QuestionReplyRequest(Body, kw_only=True):
    """``POST …/questions/{id}/reply``: the chosen options of each question."""

    answers: list[list[str]]


class PendingPermission(Body, kw_only=True):
    """A permission or question that waits for an answer.

    Attributes:
        kind: "permission" or "question".
        sequence: the sequence of its permission.requested or question.requested event.
        metadata: the event's metadata.
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

    @property
    def requested_time(self) -> datetime:
        """``requested_at`` as a datetime in UTC."""
        return to_time(self.requested_at)

    @property
    def expires_time(self) -> datetime | None:
        """``expires_at`` as a datetime in UTC, or None."""
        return None if self.expires_at is None else to_time(self.expires_at)


class PermissionListResponse(Body, kw_only=True):
    """``GET /v1/permissions``: oldest first."""

    permissions: list[PendingPermission]


class SearchHit(Body, kw_only=True):
    """An event that matches a search; in ``snippet``, the words are between ``[`` and ``]``."""

    session_id: str
    agent: str
    sequence: int
    time: int
    snippet: str
    title: str | None = None


class SearchResponse(Body, kw_only=True):
    """``GET /v1/search``: the best hits first."""

    hits: list[SearchHit]
    has_more: bool


class AgentModeInfo(Body, kw_only=True, omit_defaults=False):
    """A mode of an agent."""

    id: str
    name: str
    description: str


class AgentModesResponse(Body, kw_only=True):
    """``GET /v1/agents/{agent}/modes``."""

    modes: list[AgentModeInfo]


class AgentModelInfo(Body, kw_only=True):
    """A model of an agent, with its variants (thought levels)."""

    id: str
    name: str | None = None
    variants: list[str] | None = None
    default_variant: str | None = None


class AgentModelsResponse(Body, kw_only=True):
    """``GET /v1/agents/{agent}/models``."""

    models: list[AgentModelInfo]
    default_model: str | None = None
