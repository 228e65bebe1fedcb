"""The entries of a transcript, built from a session's events; only unfinished items are held in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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

# The limit of unfinished items, calls and requests; beyond it, the oldest one is shown as it is.
MAX_OPEN = 1000
# Statuses that the head of the transcript shows, or that are of no use to a reader.
_HIDDEN = {"usage", "commands"}
# No entry is held back beyond these events.
_BOUNDARIES = {"turn.started", "turn.ended", "session.ended"}
# Kinds of items that are shown where they started.
_PLACED = {"message", "system"}


@dataclass(frozen=True, slots=True)
class Message:
    """A message; ``role`` is user, assistant, system or tool."""

    time: str
    role: str
    parts: Sequence[ContentPart]
    status: str

    @property
    def is_thought(self) -> bool:
        """Whether the message consists of the agent's reasoning only."""
        return bool(self.parts) and all(isinstance(part, ReasoningPart) for part in self.parts)


@dataclass(slots=True)
class ToolCall:
    """A tool call with its result; ``results`` is None if there is none."""

    time: str
    title: str
    name: str = ""
    kind: str = ""
    arguments: str = ""
    parts: Sequence[ContentPart] = ()
    results: Sequence[ContentPart] | None = None
    status: str = "in_progress"

    @property
    def has_arguments(self) -> bool:
        """Whether the call has arguments."""
        return self.arguments not in {"", "{}"}

    @property
    def outcome(self) -> str:
        """What differs from success, in words; empty if nothing does."""
        if self.results is None:
            return "no result"
        return "" if self.status == "completed" else self.status


@dataclass(frozen=True, slots=True)
class Status:
    """A change outside of the conversation; ``value`` is the data from which the line was made."""

    time: str
    label: str
    detail: str
    value: Any = None
    parts: Sequence[ContentPart] = ()
    failed: bool = False


@dataclass(frozen=True, slots=True)
class TurnStart:
    """The start of a turn; ``number`` counts the turns of the transcript."""

    time: str
    number: int


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The end of a turn, with its reason and usage."""

    time: str
    stop_reason: str
    reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Request:
    """A permission request or a question; ``verdict`` is empty while it is pending."""

    time: str
    kind: str
    text: str
    verdict: str = ""
    by: str = ""
    response: str = ""
    options: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, or an event that could not be understood."""

    time: str
    message: str
    code: str = ""
    details: Any = None


@dataclass(frozen=True, slots=True)
class Note:
    """The start or end of the session, or a range of missing events."""

    time: str
    text: str


Entry: TypeAlias = Message | ToolCall | Status | TurnStart | TurnEnd | Request | Failure | Note


@dataclass(slots=True)
class _OpenItem:
    """A started item."""

    time: str
    item: UniversalItem | None
    pieces: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class _Slot:
    """A place in the transcript, with its entries once they are known."""

    item_id: str = ""
    entries: list[Entry] | None = None


class TranscriptBuilder:
    """Joins the events of an item into one entry, and a tool call with its result.

    A message is shown where it started, even if the agent continues it after a tool call. A call is shown
    where its result arrived. An item that is never completed is shown at the end of its turn, with the text
    of its deltas.
    """

    def __init__(self) -> None:
        self._items: dict[str, _OpenItem] = {}
        self._calls: dict[str, ToolCall] = {}
        self._requests: dict[str, Request] = {}
        self._turns = 0
        self._next = 1
        self._order: deque[_Slot] = deque()
        self._started: dict[str, _Slot] = {}

    def add(self, event: UniversalEvent) -> list[Entry]:
        """Add the next event and return the entries that are complete now, in order."""
        found: list[Entry] = []
        if event.sequence > self._next:
            found.append(
                Note(event.time, f"Events {self._next} to {event.sequence - 1} are not stored any more.")
            )
        self._next = event.sequence + 1
        found += self._convert(event)
        return self._place(event, found)

    def _place(self, event: UniversalEvent, found: list[Entry]) -> list[Entry]:
        """Put entries into their places and return those that have no open place before them."""
        item = event.data.item if isinstance(event.data, ItemEventData) else None
        slot = self._started.pop(item.item_id, None) if item and event.type == "item.completed" else None
        if slot is not None:
            slot.entries = found
        elif found:
            self._order.append(_Slot(entries=found))
        if (
            item
            and event.type == "item.started"
            and item.kind in _PLACED
            and item.item_id not in self._started
        ):
            self._started[item.item_id] = slot = _Slot(item.item_id)
            self._order.append(slot)
        boundary = event.type in _BOUNDARIES
        ready: list[Entry] = []
        while self._order and (boundary or self._order[0].entries is not None or len(self._order) > MAX_OPEN):
            slot = self._order.popleft()
            ready += slot.entries or []
            self._started.pop(slot.item_id, None)
        return ready

    def finish(self) -> list[Entry]:
        """Return the entries of everything that is unfinished after the last event."""
        waiting = list(self._requests.values())
        self._requests = {}
        held = [entry for slot in self._order for entry in slot.entries or []]
        self._order.clear()
        self._started = {}
        return [*held, *self._finish_open(), *waiting]

    def _convert(self, event: UniversalEvent) -> list[Entry]:
        time = event.time
        match event.data:
            case ItemDeltaData() as data:
                return self._add_delta(time, data)
            case ItemEventData(item=item):
                if event.type == "item.started":
                    return self._start(time, item)
                self._items.pop(item.item_id, None)
                return self._complete(time, item)
            case TurnEventData(phase="started"):
                self._turns += 1
                return [*self._finish_open(), TurnStart(time, self._turns)]
            case TurnEventData() as data:
                return [*self._finish_open(), _turn_end(time, members(data.metadata))]
            case PermissionEventData() | QuestionEventData() as data:
                return self._add_request(time, data)
            case ErrorData() as data:
                return [Failure(time, data.message, data.code or "", data.details)]
            case AgentUnparsedData() as data:
                return [Failure(time, f"The agent sent a message that could not be understood: {data.error}")]
            case SessionStartedData():
                return [Note(time, "The session starts.")]
            case SessionEndedData() as data:
                message = f": {data.message}" if data.message else ""
                return [*self._finish_open(), Note(time, f"The session has ended ({data.reason}){message}.")]
            case _:  # stored by a newer version
                return [Status(time, str(event.type), "", event.data)]

    def _start(self, time: str, item: UniversalItem) -> list[Entry]:
        self._items[item.item_id] = _OpenItem(time, item)
        return self._limit_open()

    def _add_delta(self, time: str, data: ItemDeltaData) -> list[Entry]:
        found = self._items.get(data.item_id)
        if found is None:  # its start has expired
            found = self._items[data.item_id] = _OpenItem(time, None)
        found.pieces.append(data.delta)
        return self._limit_open()

    def _limit_open(self) -> list[Entry]:
        if len(self._items) <= MAX_OPEN:
            return []
        return self._show_unfinished(self._items.pop(next(iter(self._items))))

    def _finish_open(self) -> list[Entry]:
        opened = list(self._items.values())
        self._items = {}
        found = [entry for each in opened for entry in self._show_unfinished(each)]
        calls = list(self._calls.values())
        self._calls = {}
        return [*found, *calls]

    def _show_unfinished(self, found: _OpenItem) -> list[Entry]:
        text = "".join(found.pieces)
        item = found.item
        if item is None:
            return [Message(found.time, "assistant", [TextPart(text)], "in_progress")] if text else []
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
                return [self._add_result(time, item)]
            case "status":
                return _status(time, item)
            case _:
                role = item.role or ("system" if item.kind == "system" else "assistant")
                return [Message(time, role, item.content, item.status)]

    def _add_result(self, time: str, item: UniversalItem) -> ToolCall:
        call = self._calls.pop(item.parent_id or "", None)
        if call is None:  # a second result, or the call has expired
            call = ToolCall(time, "Result")
        call.results = item.content
        call.status = item.status
        return call

    def _add_request(self, time: str, data: PermissionEventData | QuestionEventData) -> list[Entry]:
        if isinstance(data, QuestionEventData):
            key = f"question {data.question_id}"
            request = Request(
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
            request = Request(
                time, "permission", data.action, verdict, by=str(metadata.get("answered_by") or "")
            )
        if not request.verdict:
            self._requests[key] = request
            return [self._requests.pop(next(iter(self._requests)))] if len(self._requests) > MAX_OPEN else []
        self._requests.pop(key, None)
        return [request]


def _call(time: str, item: UniversalItem) -> ToolCall:
    call = ToolCall(time, "", status=item.status)
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
    if label in _HIDDEN:
        return []
    return [Status(time, label or "status", detail, value, rest, item.status == "failed")]


def _turn_end(time: str, metadata: dict[str, Any]) -> TurnEnd:
    cancelled = metadata.get("cancelled") is True
    stop_reason = "cancelled" if cancelled else str(metadata.get("stop_reason") or "ended")
    error = members(metadata.get("error"))
    reason = str(error.get("message") or metadata.get("reason") or "")
    return TurnEnd(time, stop_reason, reason.replace("_", " "), members(metadata.get("usage")))
