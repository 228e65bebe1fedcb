"""Universal events into the rows of turns, permissions and the search index."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from sandbox_agent.persist.store import (
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
)
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, members, read_head
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

Row: TypeAlias = EnvelopeRow | EventRow | TextRow | TurnRow | PermissionRow | SnapshotRow | SessionRow


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


def request_id_of(data: PermissionEventData | QuestionEventData) -> str:
    """Return the id of a permission or a question."""
    return data.permission_id if isinstance(data, PermissionEventData) else data.question_id


def permission_row(
    key: int,
    data: PermissionEventData | QuestionEventData,
    request_id: bytes,
    connection_id: str,
    sequence: int,
    time_ms: int,
) -> PermissionRow:
    """Return the row of a permission or question that was requested."""
    permission = isinstance(data, PermissionEventData)
    return PermissionRow(
        key=key,
        permission_id=request_id_of(data),
        kind="permission" if permission else "question",
        request_id=request_id,
        connection_id=connection_id,
        sequence=sequence,
        action=data.action if permission else data.prompt,
        metadata=dumps(msgspec.to_builtins(data)),
        requested_at=time_ms,
    )


def ended_turn(turn: TurnRow, data: TurnEventData, sequence: int, time_ms: int) -> TurnRow:
    """Return the row of a turn that has ended."""
    metadata = members(data.metadata)
    reason = str(metadata.get("stop_reason") or "")
    state = "done"
    error: str | None = None
    why = str(metadata.get("reason") or "")
    if reason == "interrupted" and why == "agent_exited":
        state = "failed"
        error = "the agent's process exited"
    elif reason == "interrupted":
        state = "interrupted"
        error = why or None
    elif metadata.get("cancelled"):
        state = "cancelled"
    elif reason == "error":
        state = "failed"
        error = str(members(metadata.get("error")).get("message") or "") or None
    return msgspec.structs.replace(
        turn,
        state=state,
        ended_at=max(time_ms, turn.started_at or 0),
        stop_reason=reason or None,
        error=error,
        last_sequence=sequence,
    )


def searchable(item: UniversalItem) -> str:
    """Return the searchable text of an item: texts, tool titles, paths and outputs."""
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
    """Return the turn's id if an envelope is a prompt that the server sent, else None."""
    if b'"session/prompt"' not in line:
        return None
    try:
        head = read_head(line)
        name = msgspec.json.decode(head.id) if head.method == "session/prompt" and head.id else None
    except (InvalidEnvelopeError, msgspec.DecodeError):
        return None
    return name if isinstance(name, str) and name.startswith("turn_") else None
