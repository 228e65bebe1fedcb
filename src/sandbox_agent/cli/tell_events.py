"""Universal events of a session, told to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sandbox_agent.cli.terminal import Screen
from sandbox_agent.wire.universal import (
    AgentUnparsedData,
    ContentPart,
    ErrorData,
    FileRefPart,
    ImagePart,
    ItemDeltaData,
    ItemEventData,
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

__all__ = ["EventNarrator"]

# Of a tool's output a reader sees its beginning.
_OUTPUT_CHARS = 200
_ORDINARY_STOPS = {"", "end_turn"}


class EventNarrator:
    """Takes events in their order and writes them to a screen.

    Args:
        screen: where to.
        session_id: whose.
        replies: say how an open request is answered.
    """

    def __init__(self, screen: Screen, session_id: str, *, replies: bool) -> None:
        self._screen = screen
        self._session_id = session_id
        self._replies = replies
        # The open messages of the agent, by item: whether it thinks aloud.
        self._open: dict[str, bool] = {}
        self._spoken: set[str] = set()
        self._speaking = ""

    def tell(self, event: UniversalEvent) -> None:
        """Write what an event means to a reader."""
        match event.data:
            case ItemDeltaData(item_id=item_id, delta=delta):
                self._delta(item_id, delta)
            case ItemEventData(item=item):
                if event.type == "item.started":
                    self._started(item)
                else:
                    self._completed(item)
            case TurnEventData() as turn:
                self._turn(turn)
            case PermissionEventData() as asked:
                self._permission(asked)
            case QuestionEventData() as asked:
                self._question(asked)
            case ErrorData(message=message, code=code):
                self._screen.note(f"error  {_line(message)}{f' ({code})' if code else ''}", "red")
            case SessionEndedData() as ended:
                why = f": {_line(ended.message)}" if ended.message else ""
                self._screen.note(f"ended  {ended.reason} by the {ended.terminated_by}{why}", "yellow")
            case AgentUnparsedData(error=error, location=location):
                self._screen.note(f"not understood  {_line(error)} ({location})", "dim")
            case _:
                pass

    def _delta(self, item_id: str, delta: str) -> None:
        thinks = self._open.get(item_id)
        if thinks is None:
            return  # the user's own words: told when they are complete
        if self._speaking != item_id:
            self._screen.end_line()
            self._speaking = item_id
        self._spoken.add(item_id)
        if thinks:
            self._screen.think(delta)
        else:
            self._screen.say(delta)

    def _started(self, item: UniversalItem) -> None:
        if item.kind in {"message", "system"} and item.role != "user":
            self._open[item.item_id] = any(isinstance(part, ReasoningPart) for part in item.content)

    def _completed(self, item: UniversalItem) -> None:
        if item.kind in {"message", "system"} and item.role != "user":
            self._said(item)
        elif item.kind == "message":
            self._screen.note(f"> {_text(item.content)}", "bold")
        elif item.kind == "tool_call":
            self._screen.note(f"tool   {_title(item.content)}", "cyan")
        elif item.kind == "tool_result":
            self._result(item)
        else:
            for part in item.content:
                if isinstance(part, StatusPart):
                    self._status(part, failed=item.status == "failed")

    def _said(self, item: UniversalItem) -> None:
        self._open.pop(item.item_id, None)
        if item.item_id in self._spoken:
            self._spoken.discard(item.item_id)
        elif text := _text(item.content):
            # The tail began in the middle of it.
            self._screen.end_line()
            self._screen.say(text)
        self._screen.end_line()

    def _result(self, item: UniversalItem) -> None:
        output = next((part.output for part in item.content if isinstance(part, ToolResultPart)), "")
        shown = _line(output)
        if len(shown) > _OUTPUT_CHARS:
            shown = shown[:_OUTPUT_CHARS] + "…"
        failed = item.status == "failed"
        self._screen.note(f"       {item.status}  {shown}".rstrip(), "red" if failed else "dim")
        for part in item.content:
            if isinstance(part, FileRefPart) and part.action != "read":
                self._screen.note(f"       {part.action}  {part.path}", "dim")

    def _status(self, part: StatusPart, *, failed: bool) -> None:
        first, *more = (part.detail or "").splitlines() or [""]
        self._screen.note(f"{part.label:<6} {first}".rstrip(), "red" if failed else "dim")
        for line in more:
            self._screen.note(f"       {line}", "dim")

    def _turn(self, turn: TurnEventData) -> None:
        if turn.phase == "started":
            return
        told = _object(turn.metadata)
        reason = str(told.get("stop_reason") or "")
        if reason in _ORDINARY_STOPS:
            self._screen.end_line()
            return
        error = _object(told.get("error")).get("message") or told.get("reason")
        self._screen.note(f"stopped  {reason}{f': {_line(str(error))}' if error else ''}", "yellow")

    def _permission(self, asked: PermissionEventData) -> None:
        if asked.status != "requested":
            by = _object(asked.metadata).get("answered_by")
            self._screen.note(
                f"permission {asked.permission_id}  {asked.status}{f' by {by}' if by else ''}", "yellow"
            )
            return
        self._screen.note(f"permission {asked.permission_id}  {_line(asked.action)}", "yellow")
        if self._replies:
            self._hint(
                f"reply-permission {self._session_id} {asked.permission_id} --reply once|always|reject"
            )

    def _question(self, asked: QuestionEventData) -> None:
        if asked.status != "requested":
            answer = f": {asked.response}" if asked.response else ""
            self._screen.note(f"question {asked.question_id}  {asked.status}{answer}", "yellow")
            return
        options = f" ({' | '.join(asked.options)})" if asked.options else ""
        self._screen.note(f"question {asked.question_id}  {_line(asked.prompt)}{options}", "yellow")
        if self._replies:
            self._hint(f"reply-question {self._session_id} {asked.question_id} --answers '[[\"…\"]]'")

    def _hint(self, command: str) -> None:
        self._screen.note(f"       sandbox-agent api sessions {command}", "dim")


def _text(content: Sequence[ContentPart]) -> str:
    return "\n".join(shown for part in content if (shown := _part(part)))


def _part(part: ContentPart) -> str:
    match part:
        case TextPart(text=text) | ReasoningPart(text=text):
            return text
        case ImagePart(mime=mime):
            return f"[image{f' {mime}' if mime else ''}]"
        case FileRefPart(path=path):
            return f"[{path}]"
        case _:
            return ""


def _title(content: Sequence[ContentPart]) -> str:
    label = next((part.label for part in content if isinstance(part, StatusPart)), "")
    name = next((part.name for part in content if isinstance(part, ToolCallPart)), "tool")
    return _line(label or name)


def _line(text: str) -> str:
    return " ".join(text.split())


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
