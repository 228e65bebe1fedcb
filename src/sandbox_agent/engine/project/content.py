"""Converts ACP content to content parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import msgspec

from sandbox_agent.engine.restore.history import CLOSING, OPENING
from sandbox_agent.wire import acp
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.universal import (
    ContentPart,
    FileAction,
    FileRefPart,
    ImagePart,
    JsonPart,
    TextPart,
)

_ACTIONS: dict[str, FileAction] = {"edit": "patch", "delete": "write", "move": "write"}
# The members of rawOutput in which agents put the text of a tool, best first.
_OUTPUT_MEMBERS = ("output", "content", "text", "formatted_output", "stdout", "error", "message")


def to_json(value: Any) -> str:
    """Return compact JSON text."""
    return dumps(value).decode()


def block_part(block: acp.ContentBlock) -> ContentPart:
    """Return the part for a content block."""
    match block:
        case acp.TextContent():
            return TextPart(block.text)
        case acp.ImageContent():
            return ImagePart(
                block.uri or f"data:{block.mime_type};base64,{block.data}", block.mime_type or None
            )
        case acp.ResourceLink():
            path = _file_path(block.uri)
            return JsonPart(msgspec.to_builtins(block)) if path is None else FileRefPart(path, "read")
        case acp.UnknownContent():
            return JsonPart(block.raw)
        case _:
            return JsonPart(msgspec.to_builtins(block))


def prompt_parts(blocks: object) -> list[ContentPart]:
    """Return the parts of the user's prompt, in order."""
    if not isinstance(blocks, list):
        return []
    parts: list[ContentPart] = []
    for block in cast("list[Any]", blocks):
        # Parse the block as a chunk, because that parser tolerates deviations from the schema.
        chunk = acp.parse_update({"sessionUpdate": "user_message_chunk", "content": block})
        if not isinstance(chunk, acp.UserMessageChunk):
            parts.append(JsonPart(block))
        elif not is_replay(chunk.text):
            parts.append(block_part(chunk.content))
    return parts


def is_replay(text: str) -> bool:
    """Return whether a text is the history that a restore puts in front of a prompt."""
    return text.endswith(CLOSING) and f"\n{OPENING}\n" in text


def parts_text(parts: Iterable[ContentPart]) -> str:
    """Return the joined text of the text parts."""
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def location_refs(places: Iterable[str], kind: str, diffs: Iterable[FileRefPart]) -> list[FileRefPart]:
    """Return the files of a call: its diffs, then the places without a diff."""
    refs = list(diffs)
    known = {ref.path for ref in refs}
    action = _ACTIONS.get(kind, "read")
    refs += [FileRefPart(path, action) for path in dict.fromkeys(places) if path not in known]
    return refs


def output_text(raw_output: Any) -> str:
    """Return a tool's output as text: the text that agents put into rawOutput, otherwise its JSON."""
    if raw_output is None:
        return ""
    if isinstance(raw_output, str):
        return raw_output
    if isinstance(raw_output, Mapping):
        members = cast("Mapping[str, Any]", raw_output)
        for name in _OUTPUT_MEMBERS:
            text = _texts(members.get(name))
            if text:
                return text
    return _texts(raw_output) or to_json(raw_output)


def _texts(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    texts: list[str] = []
    for block in cast("list[Any]", value):
        text: Any = cast("dict[str, Any]", block).get("text") if isinstance(block, dict) else None
        if not isinstance(text, str):
            return ""
        texts.append(text)
    return "\n".join(texts)


def _file_path(uri: str) -> str | None:
    try:
        split = urlsplit(uri)
    except ValueError:
        return None
    if split.scheme == "file":
        return unquote(split.path) or None
    return uri if not split.scheme and uri else None
