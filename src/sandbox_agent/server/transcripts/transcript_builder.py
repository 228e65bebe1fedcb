"""Events of a session in, entries of a transcript out: a pure fold whose memory is what is open."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sandbox_agent.server.transcripts.entries import (
    Asked,
    Called,
    Entry,
    Failure,
    Mark,
    Said,
    Status,
    TurnEnd,
    TurnStart,
)
from sandbox_agent.wire.members import members
from sandbox_agent.wire.universal import (
    AgentUnparsedData,
    ContentPart,
    ErrorData,
    ItemDeltaData,
    ItemEventData,
    JsonPart,
    PermissionEventData,
    QuestionEventData,
    ReasoningPart,
    SessionEndedData,
    SessionStartedData,
    StatusPart,
    TextPart,
    ToolCallPart,
    TurnEventData,
    UniversalEvent,
    UniversalItem,
)

__all__ = ["Fold"]

# Items and calls that are open at once: real agents have a few; beyond this the oldest is shown as it is.
MAX_OPEN = 1000
# They are shown at the head of the transcript, or say nothing to a reader.
_UNSHOWN = {"usage", "commands"}
# Nothing is held back over these; and the items that stand where they began.
_BOUNDARIES = {"turn.started", "turn.ended", "session.ended"}
_PLACED = {"message", "system"}


@dataclass(slots=True)
class _Open:
    """An item that has begun."""

    time: str
    item: UniversalItem | None
    pieces: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class _Slot:
    """A place in the transcript, and what stands there once that is known."""

    item_id: str = ""
    entries: list[Entry] | None = None


class Fold:
    """Joins started, deltas and completed to one entry, and a call with its result.

    A message stands where it began, though agents go on with it behind a tool call; a call stands where
    its result came. An item that was never completed comes from its deltas, at the end of its turn.
    """

    def __init__(self) -> None:
        self._items: dict[str, _Open] = {}
        self._calls: dict[str, Called] = {}
        self._asked: dict[str, Asked] = {}
        self._turns = 0
        self._next = 1
        self._order: deque[_Slot] = deque()
        self._begun: dict[str, _Slot] = {}

    def feed(self, event: UniversalEvent) -> list[Entry]:
        """Take the next event and return what is to be shown now."""
        found: list[Entry] = []
        if event.sequence > self._next:
            found.append(
                Mark(event.time, f"Events {self._next} to {event.sequence - 1} are not kept any more.")
            )
        self._next = event.sequence + 1
        found += self._entries(event)
        return self._placed(event, found)

    def _placed(self, event: UniversalEvent, found: list[Entry]) -> list[Entry]:
        """Put entries into their place and return those before which nothing is missing any more."""
        item = event.data.item if isinstance(event.data, ItemEventData) else None
        slot = self._begun.pop(item.item_id, None) if item and event.type == "item.completed" else None
        if slot is not None:
            slot.entries = found
        elif found:
            self._order.append(_Slot(entries=found))
        if item and event.type == "item.started" and item.kind in _PLACED and item.item_id not in self._begun:
            self._begun[item.item_id] = slot = _Slot(item.item_id)
            self._order.append(slot)
        over = event.type in _BOUNDARIES
        ready: list[Entry] = []
        while self._order and (over or self._order[0].entries is not None or len(self._order) > MAX_OPEN):
            slot = self._order.popleft()
            ready += slot.entries or []
            self._begun.pop(slot.item_id, None)
        return ready

    def end(self) -> list[Entry]:
        """Return what is open at the end of the events."""
        waiting = list(self._asked.values())
        self._asked = {}
        held = [entry for slot in self._order for entry in slot.entries or []]
        self._order.clear()
        self._begun = {}
        return [*held, *self._rest(), *waiting]

    def _entries(self, event: UniversalEvent) -> list[Entry]:
        time = event.time
        match event.data:
            case ItemDeltaData() as data:
                return self._delta(time, data)
            case ItemEventData(item=item):
                if event.type == "item.started":
                    return self._start(time, item)
                self._items.pop(item.item_id, None)
                return self._complete(time, item)
            case TurnEventData(phase="started"):
                self._turns += 1
                return [*self._rest(), TurnStart(time, self._turns)]
            case TurnEventData() as data:
                return [*self._rest(), _turn_end(time, members(data.metadata))]
            case PermissionEventData() | QuestionEventData() as data:
                return self._ask(time, data)
            case ErrorData() as data:
                return [Failure(time, data.message, data.code or "", data.details)]
            case AgentUnparsedData() as data:
                return [Failure(time, f"The agent sent what could not be understood: {data.error}")]
            case SessionStartedData():
                return [Mark(time, "The session begins.")]
            case SessionEndedData() as data:
                told = f": {data.message}" if data.message else ""
                return [*self._rest(), Mark(time, f"The session has ended ({data.reason}){told}.")]
            case _:  # a newer server wrote it
                return [Status(time, str(event.type), "", event.data)]

    def _start(self, time: str, item: UniversalItem) -> list[Entry]:
        self._items[item.item_id] = _Open(time, item)
        return self._overflow()

    def _delta(self, time: str, data: ItemDeltaData) -> list[Entry]:
        found = self._items.get(data.item_id)
        if found is None:  # its beginning is not kept any more
            found = self._items[data.item_id] = _Open(time, None)
        found.pieces.append(data.delta)
        return self._overflow()

    def _overflow(self) -> list[Entry]:
        if len(self._items) <= MAX_OPEN:
            return []
        return self._unfinished(self._items.pop(next(iter(self._items))))

    def _rest(self) -> list[Entry]:
        opened = list(self._items.values())
        self._items = {}
        found = [entry for each in opened for entry in self._unfinished(each)]
        calls = list(self._calls.values())
        self._calls = {}
        return [*found, *calls]

    def _unfinished(self, found: _Open) -> list[Entry]:
        text = "".join(found.pieces)
        item = found.item
        if item is None:
            return [Said(found.time, "assistant", [TextPart(text)], "in_progress")] if text else []
        parts = [part for part in item.content if not isinstance(part, TextPart | ReasoningPart) or part.text]
        if text:
            thought = any(isinstance(part, ReasoningPart) for part in item.content)
            parts.append(ReasoningPart(text) if thought else TextPart(text))
        if not parts:
            return []
        shown = UniversalItem(item.item_id, item.kind, parts, item.status, item.role, None, item.parent_id)
        return self._complete(found.time, shown, open_=True)

    def _complete(self, time: str, item: UniversalItem, *, open_: bool = False) -> list[Entry]:
        match item.kind:
            case "tool_call":
                call = _call(time, item)
                if open_:
                    return [call]
                found: list[Entry] = []
                if len(self._calls) >= MAX_OPEN:
                    found = [self._calls.pop(next(iter(self._calls)))]
                self._calls[item.item_id] = call
                return found
            case "tool_result":
                return [self._result(time, item)]
            case "status":
                return _status(time, item)
            case _:
                role = item.role or ("system" if item.kind == "system" else "assistant")
                return [Said(time, role, item.content, item.status)]

    def _result(self, time: str, item: UniversalItem) -> Called:
        call = self._calls.pop(item.parent_id or "", None)
        if call is None:  # a second result, or one whose call is not kept any more
            call = Called(time, "Result")
        call.results = item.content
        call.status = item.status
        return call

    def _ask(self, time: str, data: PermissionEventData | QuestionEventData) -> list[Entry]:
        if isinstance(data, QuestionEventData):
            key = f"question {data.question_id}"
            asked = Asked(
                time,
                "question",
                data.prompt,
                "" if data.status == "requested" else data.status,
                response=data.response or "",
                options=data.options,
            )
        else:
            metadata = members(data.metadata)
            key = f"permission {data.permission_id}"
            verdict = "" if data.status == "requested" else str(data.status)
            if metadata.get("outcome") in {"cancelled", "interrupted", "turn_ended", "superseded"}:
                verdict = f"not answered ({str(metadata['outcome']).replace('_', ' ')})"
            asked = Asked(time, "permission", data.action, verdict, by=str(metadata.get("answered_by") or ""))
        if not asked.verdict:
            self._asked[key] = asked
            return [self._asked.pop(next(iter(self._asked)))] if len(self._asked) > MAX_OPEN else []
        self._asked.pop(key, None)
        return [asked]


def _call(time: str, item: UniversalItem) -> Called:
    call = Called(time, "", status=item.status)
    rest: list[ContentPart] = []
    for part in item.content:
        match part:
            case ToolCallPart():
                call.name, call.arguments = part.name, part.arguments
            case StatusPart():
                call.title, call.kind = part.label, part.detail or ""
            case _:
                rest.append(part)
    call.title = call.title or call.name or "Tool call"
    call.parts = rest
    return call


def _status(time: str, item: UniversalItem) -> list[Entry]:
    label = detail = ""
    value: Any = None
    rest: list[ContentPart] = []
    for part in item.content:
        match part:
            case StatusPart() if not label:
                label, detail = part.label, part.detail or ""
            case JsonPart() if value is None:
                value = part.json
            case _:
                rest.append(part)
    if label in _UNSHOWN:
        return []
    return [Status(time, label or "status", detail, value, rest, item.status == "failed")]


def _turn_end(time: str, metadata: dict[str, Any]) -> TurnEnd:
    cancelled = metadata.get("cancelled") is True
    stop_reason = "cancelled" if cancelled else str(metadata.get("stop_reason") or "ended")
    error = members(metadata.get("error"))
    reason = str(error.get("message") or metadata.get("reason") or "")
    return TurnEnd(time, stop_reason, reason.replace("_", " "), members(metadata.get("usage")))
