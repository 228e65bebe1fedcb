"""Events into the rows of turns, permissions and the search index."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from sandbox_agent.persist.store import PermissionRow, TurnRow
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, read_head
from sandbox_agent.wire.universal import (
    FileRefPart,
    PermissionEventData,
    QuestionEventData,
    ReasoningPart,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    TurnEventData,
    UniversalItem,
)

__all__ = [
    "ask_id",
    "ended_turn",
    "permission_row",
    "read_prompt",
    "resolved_permission",
    "searchable",
    "turn_id_of",
]


class _PromptParams(msgspec.Struct):
    prompt: msgspec.Raw = msgspec.Raw(b"[]")


class _Prompt(msgspec.Struct):
    params: _PromptParams


_prompts = msgspec.json.Decoder(_Prompt)


def read_prompt(line: bytes) -> bytes:
    """Return the JSON of a session/prompt's content blocks."""
    try:
        return bytes(_prompts.decode(line).params.prompt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b"[]"


def ask_id(data: PermissionEventData | QuestionEventData) -> str:
    """Return the id of what is asked."""
    return data.permission_id if isinstance(data, PermissionEventData) else data.question_id


def permission_row(
    key: int,
    data: PermissionEventData | QuestionEventData,
    request_id: bytes,
    connection_id: str,
    sequence: int,
    time_ms: int,
) -> PermissionRow:
    """Return the row of something that was asked for."""
    permission = isinstance(data, PermissionEventData)
    return PermissionRow(
        key=key,
        permission_id=ask_id(data),
        kind="permission" if permission else "question",
        request_id=request_id,
        connection_id=connection_id,
        sequence=sequence,
        action=data.action if permission else data.prompt,
        metadata=dumps(msgspec.to_builtins(data)),
        requested_at=time_ms,
    )


def resolved_permission(
    asked: PermissionRow, data: PermissionEventData | QuestionEventData, time_ms: int, by: str | None
) -> PermissionRow:
    """Return the row of something that was answered, or that nobody will answer any more."""
    return msgspec.structs.replace(asked, answered=data.status, answered_at=time_ms, answered_by=by)


def ended_turn(turn: TurnRow, data: TurnEventData, sequence: int, time_ms: int) -> TurnRow:
    """Return the row of a turn that is over."""
    metadata: Any = data.metadata
    told = cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}
    reason = str(told.get("stop_reason") or "")
    state = "done"
    error: str | None = None
    why = str(told.get("reason") or "")
    if reason == "interrupted" and why == "agent_exited":
        state = "failed"
        error = "the agent's process exited"
    elif reason == "interrupted":
        state = "interrupted"
        error = why or None
    elif told.get("cancelled"):
        state = "cancelled"
    elif reason == "error":
        state = "failed"
        failure: Any = told.get("error")
        if isinstance(failure, dict):
            error = str(cast("dict[str, Any]", failure).get("message") or "") or None
    return msgspec.structs.replace(
        turn, state=state, ended_at=time_ms, stop_reason=reason or None, error=error, last_sequence=sequence
    )


def searchable(item: UniversalItem) -> str:
    """Return what of an item is found by its words: texts, tool titles, paths and outputs."""
    texts: list[str] = []
    for part in item.content:
        if isinstance(part, TextPart | ReasoningPart):
            texts.append(part.text)
        elif isinstance(part, ToolCallPart):
            texts.append(part.name)
        elif isinstance(part, StatusPart):
            texts.append(part.label)
        elif isinstance(part, ToolResultPart):
            texts.append(part.output)
        elif isinstance(part, FileRefPart):
            texts.append(part.path)
    return "\n".join(text for text in texts if text)


def turn_id_of(line: bytes) -> str | None:
    """Return the turn's id where an envelope is a prompt of the server's own, else None."""
    if b'"session/prompt"' not in line:
        return None
    try:
        head = read_head(line)
        name = msgspec.json.decode(head.id) if head.method == "session/prompt" and head.id else None
    except (InvalidEnvelopeError, msgspec.DecodeError):
        return None
    return name if isinstance(name, str) and name.startswith("turn_") else None
