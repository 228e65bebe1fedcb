"""What tool calls touch and produce (ACP schema v1, ToolCallContent, ToolCallLocation)."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from sandbox_agent.wire.acp.base import AcpStruct
from sandbox_agent.wire.acp.content import ContentBlock, UnknownContent


class ToolCallLocation(AcpStruct, frozen=True):
    """A file that a tool works on; ``line`` counts from 1 where the agent knows it."""

    path: str
    line: int | None = None


class Content(AcpStruct, frozen=True, tag_field="type", tag="content"):
    """An ordinary content block."""

    type: ClassVar[Literal["content"]] = "content"
    content: ContentBlock


class Diff(AcpStruct, frozen=True, tag_field="type", tag="diff"):
    """A file's change; ``old_text`` is None for a new file."""

    type: ClassVar[Literal["diff"]] = "diff"
    path: str
    new_text: str
    old_text: str | None = None


class Terminal(AcpStruct, frozen=True, tag_field="type", tag="terminal"):
    """A terminal that the client made, shown inside the tool call."""

    type: ClassVar[Literal["terminal"]] = "terminal"
    terminal_id: str


ToolCallContent: TypeAlias = Content | Diff | Terminal | UnknownContent
