"""The session updates: every ``sessionUpdate`` kind of ACP schema v1, one view each."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import msgspec

from sandbox_agent.wire.acp.base import AcpStruct
from sandbox_agent.wire.acp.content import ContentBlock, TextContent
from sandbox_agent.wire.acp.tools import ToolCallContent, ToolCallLocation


class _Update(AcpStruct, frozen=True, tag_field="sessionUpdate"):
    pass


class _ContentChunk(_Update, frozen=True):
    content: ContentBlock

    @property
    def text(self) -> str:
        """The block's text; empty where it is no text block."""
        return self.content.text if isinstance(self.content, TextContent) else ""


class UserMessageChunk(_ContentChunk, frozen=True, tag="user_message_chunk"):
    """A piece of what the user said; ``message_id`` is the same in all pieces of a message."""

    session_update: ClassVar[Literal["user_message_chunk"]] = "user_message_chunk"
    message_id: str | None = None


class AgentMessageChunk(_ContentChunk, frozen=True, tag="agent_message_chunk"):
    """A piece of what the agent says; ``message_id`` is the same in all pieces of a message."""

    session_update: ClassVar[Literal["agent_message_chunk"]] = "agent_message_chunk"
    message_id: str | None = None


class AgentThoughtChunk(_ContentChunk, frozen=True, tag="agent_thought_chunk"):
    """A piece of what the agent thinks; ``message_id`` is the same in all pieces of a message."""

    session_update: ClassVar[Literal["agent_thought_chunk"]] = "agent_thought_chunk"
    message_id: str | None = None


class ToolCall(_Update, frozen=True, tag="tool_call"):
    """A tool call begins.

    Attributes:
        tool_call_id: unique in its session.
        title: what it does, for people.
        name: the tool's own name, if the agent reports it.
        kind: read, edit, delete, move, search, execute, think, fetch, switch_mode, other, or a newer one.
        status: pending, in_progress, completed or failed.
        content: what it produced so far.
        locations: the files that it works on.
        raw_input: its arguments, as the agent gives them.
        raw_output: its result, as the agent gives it.
    """

    session_update: ClassVar[Literal["tool_call"]] = "tool_call"
    tool_call_id: str
    title: str
    name: str | None = None
    kind: str = "other"
    status: str = "pending"
    content: list[ToolCallContent] = msgspec.field(default_factory=list[ToolCallContent])
    locations: list[ToolCallLocation] = msgspec.field(default_factory=list[ToolCallLocation])
    raw_input: Any = None
    raw_output: Any = None


class ToolCallUpdate(_Update, frozen=True, tag="tool_call_update"):
    """A tool call goes on: fields as in ToolCall, None for what is as it was; lists replace lists."""

    session_update: ClassVar[Literal["tool_call_update"]] = "tool_call_update"
    tool_call_id: str
    title: str | None = None
    name: str | None = None
    kind: str | None = None
    status: str | None = None
    content: list[ToolCallContent] | None = None
    locations: list[ToolCallLocation] | None = None
    raw_input: Any = None
    raw_output: Any = None


class PlanEntry(AcpStruct, frozen=True):
    """A step; ``priority`` is high, medium or low, ``status`` pending, in_progress or completed."""

    content: str
    priority: str = "medium"
    status: str = "pending"


class Plan(_Update, frozen=True, tag="plan"):
    """The agent's whole plan; it replaces the one before."""

    session_update: ClassVar[Literal["plan"]] = "plan"
    entries: list[PlanEntry]


class UnstructuredCommandInput(AcpStruct, frozen=True):
    """A command takes the text behind its name; ``hint`` is shown until there is some."""

    hint: str


class AvailableCommand(AcpStruct, frozen=True):
    """A slash command."""

    name: str
    description: str
    input: UnstructuredCommandInput | None = None


class AvailableCommandsUpdate(_Update, frozen=True, tag="available_commands_update"):
    """All commands that the session knows now."""

    session_update: ClassVar[Literal["available_commands_update"]] = "available_commands_update"
    available_commands: list[AvailableCommand]


class CurrentModeUpdate(_Update, frozen=True, tag="current_mode_update"):
    """The session is in another mode."""

    session_update: ClassVar[Literal["current_mode_update"]] = "current_mode_update"
    current_mode_id: str


class ConfigOptionUpdate(_Update, frozen=True, tag="config_option_update"):
    """All config options with their values, as ACP gives them (SessionConfigOption)."""

    session_update: ClassVar[Literal["config_option_update"]] = "config_option_update"
    config_options: list[dict[str, Any]]


class SessionInfoUpdate(_Update, frozen=True, tag="session_info_update"):
    """The session's title, or the time of its last change (ISO 8601)."""

    session_update: ClassVar[Literal["session_info_update"]] = "session_info_update"
    title: str | None = None
    updated_at: str | None = None


class Cost(AcpStruct, frozen=True):
    """What a session cost so far; ``currency`` is ISO 4217."""

    amount: float
    currency: str


class UsageUpdate(_Update, frozen=True, tag="usage_update"):
    """Tokens ``used`` of the context window's ``size``."""

    session_update: ClassVar[Literal["usage_update"]] = "usage_update"
    used: int
    size: int
    cost: Cost | None = None


class Notice(_Update, frozen=True, tag="notice"):
    """Something the user should know; ``severity`` is info, warning or error."""

    session_update: ClassVar[Literal["notice"]] = "notice"
    severity: str
    title: str
    description: str | None = None


class CompactionUpdate(_Update, frozen=True, tag="compaction_update"):
    """The agent shortens its history; ``status`` says how far it is, ``error`` why it failed."""

    session_update: ClassVar[Literal["compaction_update"]] = "compaction_update"
    compaction_id: str
    status: str
    summary: list[ContentBlock] | None = None
    error: str | None = None


class CompactionSummaryChunk(_ContentChunk, frozen=True, tag="compaction_summary_chunk"):
    """A piece of a compaction's summary."""

    session_update: ClassVar[Literal["compaction_summary_chunk"]] = "compaction_summary_chunk"
    compaction_id: str


class UnknownUpdate(msgspec.Struct, frozen=True):
    """An update of a kind that this version doesn't know, or that lacks what its kind requires.

    Attributes:
        session_update: its kind, or an empty string where it has none.
        raw: all of it; empty where it was no object.
    """

    session_update: str
    raw: dict[str, Any]


KnownUpdate: TypeAlias = (
    UserMessageChunk
    | AgentMessageChunk
    | AgentThoughtChunk
    | ToolCall
    | ToolCallUpdate
    | Plan
    | AvailableCommandsUpdate
    | CurrentModeUpdate
    | ConfigOptionUpdate
    | SessionInfoUpdate
    | UsageUpdate
    | Notice
    | CompactionUpdate
    | CompactionSummaryChunk
)
SessionUpdate: TypeAlias = KnownUpdate | UnknownUpdate
