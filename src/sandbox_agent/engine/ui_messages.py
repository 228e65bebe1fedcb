"""The UI message stream of the AI SDK (npm ``ai``, version 1 of the stream), made from the events of a turn.

A turn is one assistant message, and one step of it. Its id is the turn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, elements, loads, members
from sandbox_agent.wire.universal import (
    ErrorData,
    FileRefPart,
    ImagePart,
    ItemDeltaData,
    ItemEventData,
    JsonPart,
    PermissionEventData,
    QuestionEventData,
    ReasoningPart,
    SessionEndedData,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    TurnEventData,
    UniversalEvent,
    UniversalItem,
)

Chunk: TypeAlias = dict[str, Any]

_FINISH_REASONS = {"end_turn": "stop", "max_tokens": "length", "refusal": "content-filter"}
# The output of a call that still runs while a permission for another one is waited for.
_RUNNING = {"status": "in_progress"}
# Statuses that are a part of their own, which the next one of their kind replaces.
_LATEST = {"plan", "usage"}


class UiMessageChunks:
    """Turns the events of one turn into chunks.

    Args:
        turn_id: The turn; the id of the message.

    Attributes:
        ended: Whether the turn has ended.
    """

    def __init__(self, turn_id: str) -> None:
        self.ended: bool = False
        self._turn_id = turn_id
        self._open_texts: dict[str, str] = {}
        self._calls: set[str] = set()
        self._open_calls: set[str] = set()
        self._denied: set[str] = set()
        self._waiting: dict[str, str] = {}

    def start(self) -> list[Chunk]:
        """Return what a response begins with: the message, and texts that an earlier response began."""
        opened: list[Chunk] = [{"type": "start", "messageId": self._turn_id}]
        return opened + [{"type": f"{kind}-start", "id": name} for name, kind in self._open_texts.items()]

    @property
    def waiting(self) -> Sequence[str]:
        """The permission requests of the turn that have no answer."""
        return () if self.ended else tuple(self._waiting)

    def pause(self, sequence: int) -> list[Chunk]:
        """Return what a response ends with because the user has to answer first.

        The AI SDK sends the answer with its next request, and only if no other call of the step is open.

        Args:
            sequence: The last event of the response; the next response continues after it.
        """
        waiting = set(self._waiting.values())
        running = sorted(self._open_calls - waiting)
        closed: list[Chunk] = [_output(call, _RUNNING) for call in running]
        closed += [{"type": f"{kind}-end", "id": name} for name, kind in self._open_texts.items()]
        return [*closed, *_finish("tool-calls", {"sequence": sequence})]

    def feed(self, event: UniversalEvent) -> list[Chunk]:
        """Return the chunks for an event of the turn; none for what the AI SDK has no place for."""
        match event.data:
            case TurnEventData(phase="started"):
                return [{"type": "start-step"}]
            case TurnEventData(turn_id=self._turn_id) as data:
                return self._end(members(data.metadata))
            case ItemEventData(item=item) if item.role != "user":
                return self._item(item, completed=event.type == "item.completed")
            case ItemDeltaData(item_id=name, delta=text) if name in self._open_texts:
                return [{"type": f"{self._open_texts[name]}-delta", "id": name, "delta": text}]
            case PermissionEventData() as data:
                return self._permission(data)
            case QuestionEventData() as data:
                return [_data("question", data.question_id, _question(data))]
            case ErrorData() as data:
                return [_data("error", None, {"message": data.message, "code": data.code})]
            case SessionEndedData() as data if not self.ended:
                return self._fail(data.message or "The session has ended.")
            case _:
                return []

    def _end(self, metadata: dict[str, Any]) -> list[Chunk]:
        reason = metadata.get("stop_reason")
        if reason == "cancelled" or metadata.get("cancelled"):
            self.ended = True
            return [{"type": "finish-step"}, {"type": "abort", "reason": "cancelled"}]
        if reason in ("error", "interrupted"):
            error = members(metadata.get("error")).get("message")
            return self._fail(str(error or f"The turn was interrupted: {metadata.get('reason', 'unknown')}."))
        self.ended = True
        usage = {"usage": metadata["usage"]} if "usage" in metadata else {}
        return _finish(_FINISH_REASONS.get(str(reason), "other"), {"stopReason": reason, **usage})

    def _fail(self, text: str) -> list[Chunk]:
        self.ended = True
        return [{"type": "error", "errorText": text}]

    def _item(self, item: UniversalItem, *, completed: bool) -> list[Chunk]:
        match item.kind:
            case "tool_call":
                return self._call(item, completed=completed)
            case "tool_result":
                return self._result(item) if completed else []
            case "message" if item.role == "assistant":
                return self._text(item, completed=completed)
            case "status" if completed:
                return _status(item)
            case _:
                return []

    def _text(self, item: UniversalItem, *, completed: bool) -> list[Chunk]:
        known = self._open_texts.get(item.item_id)
        chunks: list[Chunk] = []
        for part in item.content:
            match part:
                case TextPart(text=text) | ReasoningPart(text=text) if known is None:
                    known = self._open_texts[item.item_id] = (
                        "text" if isinstance(part, TextPart) else "reasoning"
                    )
                    chunks.append({"type": f"{known}-start", "id": item.item_id})
                    if text:
                        chunks.append({"type": f"{known}-delta", "id": item.item_id, "delta": text})
                case ImagePart() if completed:
                    chunks.append({"type": "file", "url": part.path, "mediaType": part.mime or "image/*"})
                case JsonPart() if completed:
                    chunks.append(_data("json", None, part.json))
                case _:
                    pass
        if completed and self._open_texts.pop(item.item_id, None) is not None:
            chunks.append({"type": f"{known}-end", "id": item.item_id})
        return chunks

    def _call(self, item: UniversalItem, *, completed: bool) -> list[Chunk]:
        call = next((part for part in item.content if isinstance(part, ToolCallPart)), None)
        if call is None:
            return []
        title = next((part.label for part in item.content if isinstance(part, StatusPart)), call.name)
        begun = self._begin_call(call.call_id, call.name, title)
        if not completed:
            return begun
        files = _files(call.call_id, item)
        if call.call_id in self._waiting.values():
            return files  # its input is shown, and another chunk for it would hide the request
        return [*begun, _input(call.call_id, call.name, title, _arguments(call.arguments)), *files]

    def _begin_call(self, call_id: str, name: str, title: str) -> list[Chunk]:
        if call_id in self._calls:
            return []
        self._calls.add(call_id)
        self._open_calls.add(call_id)
        return [{"type": "tool-input-start", "toolCallId": call_id, **_tool(name, title)}]

    def _result(self, item: UniversalItem) -> list[Chunk]:
        result = next((part for part in item.content if isinstance(part, ToolResultPart)), None)
        if result is None or result.call_id not in self._calls:
            return []
        self._open_calls.discard(result.call_id)
        failed = item.status == "failed"
        if failed and result.call_id in self._denied:
            return []
        if failed:
            text = result.output or "The tool call has failed."
            return [{"type": "tool-output-error", "toolCallId": result.call_id, "errorText": text}]
        return [_output(result.call_id, result.output), *_files(result.call_id, item)]

    def _permission(self, data: PermissionEventData) -> list[Chunk]:
        if data.status != "requested":
            call_id = self._waiting.pop(data.permission_id, None)
            if call_id is None or data.status != "reject":
                return []
            self._denied.add(call_id)
            return [{"type": "tool-output-denied", "toolCallId": call_id}]
        metadata = members(data.metadata)
        call_id = str(metadata.get("tool_call_id") or data.permission_id)
        begun = self._begin_call(call_id, str(metadata.get("kind") or "tool"), data.action)
        if begun:
            raw = metadata.get("raw_input")
            begun.append(_input(call_id, str(metadata.get("kind") or "tool"), data.action, raw))
        self._waiting[data.permission_id] = call_id
        request = {"approvalId": data.permission_id, "toolCallId": call_id}
        options = {"options": metadata.get("options"), "action": data.action}
        return [*begun, {"type": "tool-approval-request", **request, "approvalDescriptor": options}]


def _tool(name: str, title: str) -> Chunk:
    # The agent runs its tools itself: not the page.
    return {"toolName": name, "title": title, "dynamic": True, "providerExecuted": True}


def _input(call_id: str, name: str, title: str, value: Any) -> Chunk:
    return {"type": "tool-input-available", "toolCallId": call_id, **_tool(name, title), "input": value}


def _output(call_id: str, value: Any) -> Chunk:
    return {"type": "tool-output-available", "toolCallId": call_id, "output": value, "dynamic": True}


def _arguments(text: str) -> Any:
    try:
        return loads(text.encode()) if text else None
    except InvalidEnvelopeError:
        return text


def _files(call_id: str, item: UniversalItem) -> list[Chunk]:
    return [
        _data(
            "diff",
            f"{call_id}:{part.path}",
            {"toolCallId": call_id, "path": part.path, "action": part.action, "diff": part.diff},
        )
        for part in item.content
        if isinstance(part, FileRefPart) and part.diff is not None
    ]


def _status(item: UniversalItem) -> list[Chunk]:
    status = next((part for part in item.content if isinstance(part, StatusPart)), None)
    if status is None:
        return []
    value = next((part.json for part in item.content if isinstance(part, JsonPart)), None)
    if status.label in _LATEST and value is not None:
        return [_data(status.label, status.label, value)]
    return [_data("status", item.item_id, {"label": status.label, "detail": status.detail})]


def _question(data: QuestionEventData) -> Chunk:
    return {
        "questionId": data.question_id,
        "prompt": data.prompt,
        "options": data.options,
        "status": data.status,
        "response": data.response,
    }


def _data(kind: str, name: str | None, value: Any) -> Chunk:
    return {"type": f"data-{kind}", "data": value} | ({} if name is None else {"id": name})


def _finish(reason: str, metadata: Chunk) -> list[Chunk]:
    return [
        {"type": "finish-step"},
        {"type": "finish", "finishReason": reason, "messageMetadata": metadata},
    ]


def prompt_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a user's message as ACP content blocks.

    Files with a ``data:`` URL of an image or an audio are sent with their content, others as a link.

    Args:
        message: A UIMessage.

    Raises:
        InvalidRequestError: It has no part that can be sent.
    """
    blocks: list[dict[str, Any]] = []
    for part in map(members, elements(message.get("parts"))):
        kind, text, url = part.get("type"), part.get("text"), part.get("url")
        if kind == "text" and isinstance(text, str) and text:
            blocks.append({"type": "text", "text": text})
        elif kind == "file" and isinstance(url, str):
            blocks.append(_file_block(part, url))
    if not blocks:
        raise InvalidRequestError(
            "invalid request: the last message has no text and no file: send a UIMessage with such a part"
        )
    return blocks


def _file_block(part: dict[str, Any], url: str) -> dict[str, Any]:
    media = str(part.get("mediaType") or "application/octet-stream")
    head, comma, content = url.partition(",")
    is_data = bool(comma) and head.startswith("data:")
    family = media.partition("/")[0]
    if is_data and head.endswith(";base64") and family in ("image", "audio"):
        return {"type": family, "mimeType": media, "data": content}
    name = str(part.get("filename") or "file")
    if is_data and head.endswith(";base64"):
        resource = {"uri": f"attachment:///{name}", "mimeType": media, "blob": content}
        return {"type": "resource", "resource": resource}
    return {"type": "resource_link", "uri": url, "name": name, "mimeType": media}


def approvals_of(message: dict[str, Any]) -> dict[str, bool]:
    """Return the answers to permission requests in an assistant's message: approval id to approved."""
    answers: dict[str, bool] = {}
    for part in map(members, elements(message.get("parts"))):
        approval = members(part.get("approval"))
        name, approved = approval.get("id"), approval.get("approved")
        responded = part.get("state") == "approval-responded"
        if responded and isinstance(name, str) and isinstance(approved, bool):
            answers[name] = approved
    return answers
