"""What goes into and comes out of the calls of ``sdk.sessions``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

import httpx2
import msgspec

from sandbox_agent.client.server_sessions.cursor import read_event
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.wire.sessions import EventsResponse
from sandbox_agent.wire.universal import UniversalEvent

__all__ = [
    "EventPage",
    "Message",
    "Moment",
    "decode",
    "flag",
    "message_body",
    "milliseconds",
    "new_key",
    "read_page",
]

T = TypeVar("T")
Message: TypeAlias = str | Sequence[Mapping[str, Any]]
Moment: TypeAlias = datetime | int


@dataclass(frozen=True)
class EventPage:
    """A page of a session's events; ``has_more`` says whether others follow."""

    events: list[UniversalEvent]
    has_more: bool


def new_key() -> str:
    """Return an idempotency key that nobody has used."""
    return str(uuid.uuid4())


def message_body(message: Message) -> dict[str, Any]:
    """Return the body of a message.

    Raises:
        ValueError: it says nothing.
    """
    if not message:
        raise ValueError("the message is empty")
    return {"message": message if isinstance(message, str) else [dict(block) for block in message]}


def milliseconds(moment: Moment | None) -> str | None:
    """Return a time as the routes take it: milliseconds since the epoch; a naive datetime is local."""
    if moment is None:
        return None
    return str(moment if isinstance(moment, int) else round(moment.timestamp() * 1000))


def flag(value: bool) -> str | None:
    """Return a boolean as a query has it; False is left out."""
    return "true" if value else None


def decode(answer: httpx2.Response, kind: type[T], what: str) -> T:
    """Read an answer.

    Raises:
        SandboxAgentError: it is not what the contract says.
    """
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SandboxAgentError(
            f"{what}: the answer is not what the contract says ({error}): is that a sandbox-agent server?"
        ) from error


def read_page(answer: httpx2.Response, what: str) -> EventPage:
    """Read a page of events; errors as ``decode``."""
    page = decode(answer, EventsResponse, what)
    return EventPage([read_event(bytes(raw)) for raw in page.events], page.has_more)
