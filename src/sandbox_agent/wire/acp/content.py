"""Content blocks: what messages are made of (ACP schema v1, ContentBlock)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import msgspec

from sandbox_agent.wire.acp.base import AcpStruct


class Annotations(AcpStruct, frozen=True):
    """Hints on how to show a block; ``last_modified`` is ISO 8601, ``priority`` is 0 to 1."""

    audience: list[str] | None = None
    last_modified: str | None = None
    priority: float | None = None


class TextContent(AcpStruct, frozen=True, tag_field="type", tag="text"):
    """Text, usually Markdown."""

    type: ClassVar[Literal["text"]] = "text"
    text: str
    annotations: Annotations | None = None


class ImageContent(AcpStruct, frozen=True, tag_field="type", tag="image"):
    """An image; ``data`` is base64."""

    type: ClassVar[Literal["image"]] = "image"
    data: str
    mime_type: str
    uri: str | None = None
    annotations: Annotations | None = None


class AudioContent(AcpStruct, frozen=True, tag_field="type", tag="audio"):
    """Sound; ``data`` is base64."""

    type: ClassVar[Literal["audio"]] = "audio"
    data: str
    mime_type: str
    annotations: Annotations | None = None


class ResourceLink(AcpStruct, frozen=True, tag_field="type", tag="resource_link"):
    """A link to something that the reader can fetch; ``size`` is in bytes."""

    type: ClassVar[Literal["resource_link"]] = "resource_link"
    name: str
    uri: str
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None
    size: int | None = None
    annotations: Annotations | None = None


class ResourceContents(AcpStruct, frozen=True):
    """An embedded resource's contents: ``text``, or ``blob`` in base64 (ACP has a type for each)."""

    uri: str
    mime_type: str | None = None
    text: str | None = None
    blob: str | None = None


class EmbeddedResource(AcpStruct, frozen=True, tag_field="type", tag="resource"):
    """A resource with its contents."""

    type: ClassVar[Literal["resource"]] = "resource"
    resource: ResourceContents
    annotations: Annotations | None = None


class UnknownContent(msgspec.Struct, frozen=True, tag_field="type", tag=""):
    """A block of a type that this version doesn't know, or that breaks the schema.

    Attributes:
        type: its type, or an empty string where it has none.
        raw: all of it.
    """

    type: str = msgspec.field(name="_type")
    raw: dict[str, Any]


ContentBlock: TypeAlias = (
    TextContent | ImageContent | AudioContent | ResourceLink | EmbeddedResource | UnknownContent
)
