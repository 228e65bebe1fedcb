"""Items and the parts that they are made of (openapi-0.1-sessions.json: UniversalItem, ContentPart)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import msgspec

ItemKind: TypeAlias = Literal["message", "tool_call", "tool_result", "system", "status", "unknown"]
ItemRole: TypeAlias = Literal["user", "assistant", "system", "tool"]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "failed"]
FileAction: TypeAlias = Literal["read", "write", "patch"]
ReasoningVisibility: TypeAlias = Literal["public", "private"]


class _Part(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    pass


class TextPart(_Part, frozen=True, tag="text"):
    """Text, usually Markdown."""

    type: ClassVar[Literal["text"]] = "text"
    text: str


class JsonPart(_Part, frozen=True, tag="json"):
    """Any JSON value that no other part represents."""

    type: ClassVar[Literal["json"]] = "json"
    json: Any


class ToolCallPart(_Part, frozen=True, tag="tool_call"):
    """A tool call; ``arguments`` is JSON in a string."""

    type: ClassVar[Literal["tool_call"]] = "tool_call"
    name: str
    arguments: str
    call_id: str


class ToolResultPart(_Part, frozen=True, tag="tool_result"):
    """The output of a tool call, as text."""

    type: ClassVar[Literal["tool_result"]] = "tool_result"
    call_id: str
    output: str


class FileRefPart(_Part, frozen=True, tag="file_ref"):
    """A file that was read, written or patched; ``diff`` is a unified diff."""

    type: ClassVar[Literal["file_ref"]] = "file_ref"
    path: str
    action: FileAction
    diff: str | None = None


class ReasoningPart(_Part, frozen=True, tag="reasoning"):
    """The reasoning of the agent."""

    type: ClassVar[Literal["reasoning"]] = "reasoning"
    text: str
    visibility: ReasoningVisibility = msgspec.field(default_factory=lambda: "public")


class ImagePart(_Part, frozen=True, tag="image"):
    """An image; ``path`` is a path, a URI, or a ``data:`` URI with its content."""

    type: ClassVar[Literal["image"]] = "image"
    path: str
    mime: str | None = None


class StatusPart(_Part, frozen=True, tag="status"):
    """A status: the name and the new value of what changed."""

    type: ClassVar[Literal["status"]] = "status"
    label: str
    detail: str | None = None


ContentPart: TypeAlias = (
    TextPart | JsonPart | ToolCallPart | ToolResultPart | FileRefPart | ReasoningPart | ImagePart | StatusPart
)


class UniversalItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item of a session: a message, a tool call, its result, or a status.

    Attributes:
        item_id: unique in its session.
        kind: the kind of the item.
        content: its parts; complete when the item is completed.
        status: in_progress, completed or failed.
        role: the author.
        native_item_id: the agent's own id (ACP's messageId or toolCallId).
        parent_id: the item to which it belongs: the call of a result, or the caller of a sub-agent.
    """

    item_id: str
    kind: ItemKind
    content: list[ContentPart]
    status: ItemStatus
    role: ItemRole | None = None
    native_item_id: str | None = None
    parent_id: str | None = None
