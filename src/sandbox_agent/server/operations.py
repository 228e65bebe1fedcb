"""An operation of the HTTP API: what the router and the OpenAPI document are both made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import InvalidRequestError, NotAcceptableError, PayloadTooLargeError

__all__ = [
    "Answer",
    "Endpoint",
    "Operation",
    "Parameter",
    "accepts",
    "flag",
    "header",
    "read_body",
    "require_json",
    "text",
]

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A path, query or header parameter; ``schema`` is its JSON schema."""

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a status means: a msgspec type or a JSON schema as body, or none."""

    description: str
    body: Any = None
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path.

    Attributes:
        errors: the ProblemError subclasses that it answers with.
    """

    method: str
    path: str
    endpoint: Endpoint
    operation_id: str
    summary: str
    description: str
    tag: str
    answers: Mapping[int, Answer]
    errors: Sequence[type[Exception]] = ()
    parameters: Sequence[Parameter] = ()
    request_body: Any = None


def header(request: Request, name: bytes) -> str | None:
    """Return the values of a header, joined as RFC 9110 does; ``name`` is lower case."""
    found: bytes | None = None
    for key, value in request.scope["headers"]:
        if key == name:
            found = value if found is None else found + b", " + value
    return None if found is None else found.decode("latin-1")


def accepts(request: Request, media_type: str) -> bool:
    """Return whether the Accept header allows a media type; none at all allows everything."""
    accepted = header(request, b"accept")
    if accepted is None or accepted == media_type:
        return True
    allowed = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return any(part.partition(";")[0].strip().lower() in allowed for part in accepted.split(","))


def require_json(request: Request) -> None:
    """Check that the client takes JSON.

    Raises:
        NotAcceptableError: its Accept header does not allow it.
    """
    if not accepts(request, "application/json"):
        raise NotAcceptableError("not acceptable: accept must allow application/json")


def text(request: Request, name: str) -> str | None:
    """Return a query parameter, None where it is absent or empty.

    Raises:
        InvalidRequestError: it holds a control character.
    """
    if not request.scope["query_string"]:
        return None
    value = request.query_params.get(name)
    if value and any(ord(character) < 32 for character in value):
        raise InvalidRequestError(f"invalid request: query parameter '{name}' holds a control character")
    return value or None


def flag(request: Request, name: str) -> bool:
    """Return a boolean query parameter, False where it is absent.

    Raises:
        InvalidRequestError: it is neither "true" nor "false".
    """
    value = request.query_params.get(name)
    if value is None:
        return False
    if value not in ("true", "false"):
        raise InvalidRequestError(f"invalid request: query parameter '{name}' must be true or false")
    return value == "true"


async def read_body(request: Request, limit: int) -> bytes:
    """Read the request's body.

    Raises:
        PayloadTooLargeError: it is over ``limit`` bytes; no more than that was held.
        InvalidRequestError: the client went away in the middle.
    """
    declared = header(request, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequestError("invalid request: the body ended early")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"payload too large: the body is over {limit} bytes; raise --max-body-bytes if it is meant to be"
    )
