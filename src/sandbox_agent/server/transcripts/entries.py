"""What a transcript is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sandbox_agent.wire.universal import ContentPart

__all__ = ["Asked", "Called", "Entry", "Failure", "Mark", "Said", "Status", "TurnEnd", "TurnStart"]


@dataclass(frozen=True, slots=True)
class Said:
    """A message: ``role`` is user, assistant, system or tool."""

    time: str
    role: str
    parts: Sequence[ContentPart]
    status: str


@dataclass(slots=True)
class Called:
    """A tool call, its result beside it; ``results`` is None where none came."""

    time: str
    title: str
    name: str = ""
    kind: str = ""
    arguments: str = ""
    parts: Sequence[ContentPart] = ()
    results: Sequence[ContentPart] | None = None
    status: str = "in_progress"


@dataclass(frozen=True, slots=True)
class Status:
    """What changed beside the conversation; ``value`` is what is behind the line."""

    time: str
    label: str
    detail: str
    value: Any = None
    parts: Sequence[ContentPart] = ()
    failed: bool = False


@dataclass(frozen=True, slots=True)
class TurnStart:
    """A turn begins; ``number`` counts those of the transcript."""

    time: str
    number: int


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """A turn ends: how, and what it took."""

    time: str
    stop_reason: str
    reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Asked:
    """A permission or question; ``verdict`` is "" while it waits."""

    time: str
    kind: str
    text: str
    verdict: str = ""
    by: str = ""
    response: str = ""
    options: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, or what could not be understood."""

    time: str
    message: str
    code: str = ""
    details: Any = None


@dataclass(frozen=True, slots=True)
class Mark:
    """The session begins or ends, or events are missing."""

    time: str
    text: str


Entry: TypeAlias = Said | Called | Status | TurnStart | TurnEnd | Asked | Failure | Mark
