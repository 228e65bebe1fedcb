"""An operation of the HTTP API: what the router and the OpenAPI document are both made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import (
    InvalidRequestError,
    NotAcceptableError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)

__all__ = [
    "MAX_NUMBER",
    "Answer",
    "Endpoint",
    "Operation",
    "Parameter",
    "accepts",
    "as_number",
    "flag",
    "header",
    "number",
    "read_body",
    "read_json",
    "require_json",
    "text",
]

# What a signed 64-bit column, and a client in another language, can hold.
MAX_NUMBER = 2**63 - 1

Body = TypeVar("Body")
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
        request_body: a msgspec type or a JSON schema.
        schemas: types that its JSON schemas refer to by name.
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
    schemas: Sequence[Any] = ()


def header(request: Request, name: bytes) -> str | None:
    """Return the values of a header, joined as RFC 9110 does; ``name`` is lower case."""
    found: bytes | None = None
    for key, value in request.scope["headers"]:
        if key == name:
            found = value if found is None else found + b", " + value
    return None if found is None else found.decode("latin-1").strip(" \t")


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


def number(
    request: Request, name: str, default: int | None = None, *, least: int = 0, most: int = MAX_NUMBER
) -> int | None:
    """Return an integer query parameter.

    Raises:
        InvalidRequestError: it is no integer from ``least`` to ``most``.
    """
    value = request.query_params.get(name)
    if value is None:
        return default
    return as_number(value, f"query parameter '{name}'", least=least, most=most)


def as_number(value: str, what: str, *, least: int = 0, most: int = MAX_NUMBER) -> int:
    """Return the integer that a text is.

    Raises:
        InvalidRequestError: it is none from ``least`` to ``most``.
    """
    if not (value.isascii() and value.isdigit() and len(value) < 20 and least <= int(value) <= most):
        upto = "" if most == MAX_NUMBER else f" to {most}"
        raise InvalidRequestError(f"invalid request: {what} must be an integer from {least}{upto or ' on'}")
    return int(value)


async def read_json(request: Request, kind: type[Body], limit: int) -> Body:
    """Read the request's body as JSON.

    Raises:
        UnsupportedMediaTypeError: its content type says that it is something else.
        PayloadTooLargeError: it is over ``limit`` bytes.
        InvalidRequestError: it is no JSON, or does not fit the type.
    """
    media_type = (header(request, b"content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError("unsupported media type: content-type must be application/json")
    body = await read_body(request, limit)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"invalid request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequestError(
            "invalid request: the body is no JSON in UTF-8, or is nested too deeply"
        ) from None


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
