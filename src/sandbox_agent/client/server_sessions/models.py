"""Parameters and results of the calls of ``sdk.sessions``."""

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

T = TypeVar("T")
Message: TypeAlias = str | Sequence[Mapping[str, Any]]
Timestamp: TypeAlias = datetime | int


@dataclass(frozen=True)
class EventPage:
    """A page of a session's events; ``has_more`` says whether more follow."""

    events: list[UniversalEvent]
    has_more: bool


def new_key() -> str:
    """Return a new idempotency key."""
    return str(uuid.uuid4())


def message_body(message: Message) -> dict[str, Any]:
    """Return the request body of a message.

    Raises:
        ValueError: the message is empty.
    """
    if not message:
        raise ValueError("the message is empty: pass a text, or at least one content block")
    return {"message": message if isinstance(message, str) else [dict(block) for block in message]}


def milliseconds(timestamp: Timestamp | None) -> int | None:
    """Return a time in milliseconds since the epoch; a naive datetime is local time."""
    return round(timestamp.timestamp() * 1000) if isinstance(timestamp, datetime) else timestamp


def query(**values: str | int | bool | None) -> dict[str, str | None]:
    """Return query parameters; None and False are left out."""
    return {name: _parameter(value) for name, value in values.items()}


def _parameter(value: str | int | bool | None) -> str | None:
    if isinstance(value, bool):
        return "true" if value else None
    return None if value is None else str(value)


def decode(answer: httpx2.Response, kind: type[T], what: str) -> T:
    """Decode a response.

    Raises:
        SandboxAgentError: the response does not have the expected shape.
    """
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SandboxAgentError(
            f"{what}: unexpected response ({error}): is that a sandbox-agent server?"
        ) from error


def read_page(answer: httpx2.Response, what: str) -> EventPage:
    """Decode a page of events; raises as ``decode``."""
    page = decode(answer, EventsResponse, what)
    return EventPage([read_event(bytes(raw)) for raw in page.events], page.has_more)
