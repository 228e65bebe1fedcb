"""Converts ACP content to content parts, and file changes to diffs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from sandbox_agent.engine.restore.history import CLOSING, OPENING, OUTPUT_MEMBERS
from sandbox_agent.wire import acp
from sandbox_agent.wire.jsonrpc import dumps, elements, members
from sandbox_agent.wire.universal import (
    ContentPart,
    FileAction,
    FileRefPart,
    ImagePart,
    JsonPart,
    TextPart,
)

# Above this many pairs of lines, the changed region is one hunk: difflib's time grows with the product.
_MAX_PAIRS = 250_000
_CONTEXT = 3


def unified_diff(old: str | None, new: str) -> str:
    """Return the hunks from ``old`` (None if the file does not exist) to ``new``, without a file header."""
    before = _lines(old or "")
    after = _lines(new)
    if len(before) * len(after) <= _MAX_PAIRS:
        lines = list(difflib.unified_diff(before, after, n=_CONTEXT))[2:]
        return _text(lines)
    start = 0
    limit = min(len(before), len(after))
    while start < limit and before[start] == after[start]:
        start += 1
    end = 0
    while end < limit - start and before[-1 - end] == after[-1 - end]:
        end += 1
    if start == len(before) == len(after):
        return ""
    lead = before[max(start - _CONTEXT, 0) : start]
    trail = before[len(before) - end :][:_CONTEXT]
    removed = before[start : len(before) - end]
    added = after[start : len(after) - end]
    first = start - len(lead)
    sizes = [len(lead) + len(part) + len(trail) for part in (removed, added)]
    header = f"@@ -{first + 1},{sizes[0]} +{first + 1},{sizes[1]} @@\n"
    return _text(
        [
            header,
            *(f" {line}" for line in lead),
            *(f"-{line}" for line in removed),
            *(f"+{line}" for line in added),
            *(f" {line}" for line in trail),
        ]
    )


def _lines(text: str) -> list[str]:
    # str.splitlines also splits at characters that are not line ends in a diff (U+2028, form feed).
    *whole, last = text.split("\n")
    return [f"{line}\n" for line in whole] + ([last] if last else [])


def _text(lines: Iterable[str]) -> str:
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


_ACTIONS: dict[str, FileAction] = {"edit": "patch", "delete": "write", "move": "write"}


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
    parts: list[ContentPart] = []
    for block in elements(blocks):
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
    for name in OUTPUT_MEMBERS:
        text = _texts(members(raw_output).get(name))
        if text:
            return text
    return _texts(raw_output) or to_json(raw_output)


def _texts(value: Any) -> str:
    if isinstance(value, str):
        return value
    texts: list[str] = []
    for block in elements(value):
        text: Any = members(block).get("text")
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
