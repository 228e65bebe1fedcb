"""The content blocks of a prompt or a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from sandbox_agent.wire.acp import (
    AudioContent,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    UnknownContent,
)

Prompt = str | Sequence[Mapping[str, Any] | ContentBlock]

_BLOCKS = (TextContent, ImageContent, AudioContent, ResourceLink, EmbeddedResource)


def prompt_blocks(prompt: Prompt) -> list[dict[str, Any]]:
    """Return a prompt as ACP content blocks.

    Raises:
        TypeError: it is neither text nor a list of content blocks, or the list is empty.
    """
    given = cast("object", prompt)
    if isinstance(given, str):
        return [{"type": "text", "text": given}]
    if isinstance(given, bytes | bytearray) or not isinstance(given, Sequence):
        raise TypeError(f"a prompt must be a str or a list of content blocks, not {type(given).__name__}")
    blocks = cast("Sequence[object]", given)
    if not blocks:
        raise TypeError("a prompt must have at least one content block: the list is empty")
    return [_block(block, index) for index, block in enumerate(blocks)]


def _block(block: object, index: int) -> dict[str, Any]:
    if isinstance(block, UnknownContent):
        return block.raw
    if isinstance(block, _BLOCKS):
        return cast("dict[str, Any]", msgspec.to_builtins(block))
    if isinstance(block, Mapping):
        fields = dict(cast("Mapping[str, Any]", block))
        if isinstance(fields.get("type"), str):
            return fields
        raise TypeError(f"prompt[{index}] has no type: a content block has one, such as 'text' or 'image'")
    raise TypeError(
        f"prompt[{index}] must be a content block such as TextContent or "
        f'{{"type": "text", "text": …}}, not {type(block).__name__}'
    )
