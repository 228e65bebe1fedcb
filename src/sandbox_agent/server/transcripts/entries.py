"""The entries of a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sandbox_agent.wire.universal import ContentPart, ReasoningPart


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
