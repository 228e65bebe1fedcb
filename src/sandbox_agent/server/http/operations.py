"""An operation of the HTTP API, and how its endpoint reads a request.

The dispatcher and the OpenAPI document are both made from operations.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import (
    AgentProcessExitedError,
    InstallFailedError,
    InvalidRequestError,
    PayloadTooLargeError,
    RequestTimeoutError,
    StreamError,
    UnsupportedMediaTypeError,
)
from sandbox_agent.server.client_names import CLIENT_HEADER_BYTES, check_client_name

# The largest value of a signed 64-bit column; clients in other languages can hold it too.
MAX_NUMBER = 2**63 - 1
MAX_IDEMPOTENCY_KEY = 255

Body = TypeVar("Body")
Endpoint = Callable[[Request], Awaitable[Response]]


def text_schema(*, least: int = 0, most: int | None = None) -> Mapping[str, Any]:
    """Return the JSON schema of a string with ``least`` to ``most`` characters."""
    schema: dict[str, Any] = {"type": "string"}
    if least:
        schema["minLength"] = least
    if most is not None:
        schema["maxLength"] = most
    return schema


def integer_schema(*, least: int = 0, most: int = MAX_NUMBER) -> Mapping[str, Any]:
    """Return the JSON schema of an integer from ``least`` to ``most``."""
    return {"type": "integer", "format": "int64", "minimum": least, "maximum": most}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A path, query or header parameter; ``schema`` is its JSON schema. Path parameters are required."""

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: Mapping[str, Any] = field(default_factory=text_schema)
    required: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of one status.

    Attributes:
        description: what the status means.
        body: a msgspec type or a JSON schema; None if the response has no body.
        media_type: the body's media type, or all that it can have.
        headers: the response's own headers with their descriptions.
    """

    description: str
    body: Any = None
    media_type: str | Sequence[str] = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


# What an operation with a body answers with if it can't be read.
BODY_ERRORS = (PayloadTooLargeError, UnsupportedMediaTypeError)
# How a request to an agent fails.
AGENT_ERRORS = (InstallFailedError, AgentProcessExitedError, StreamError, RequestTimeoutError)


@dataclass(slots=True)
class Operation:
    """One method on one path, as the decorator of its endpoint.

    The endpoint's name is the operation's id; its docstring is the operation's summary and description.

    Attributes:
        errors: the ProblemError subclasses that it answers with; those of parameters and a body are implied.
        request_body: a msgspec type or a JSON schema.
        media_type: of the request's body.
        schemas: types to which its JSON schemas refer by name.
        store_deadline: when the time begins after which it fails if the store has not answered: with the
            "request", once its "body" was read, or never.
    """

    method: str
    path: str
    _: KW_ONLY
    answers: Mapping[int, Answer]
    tag: str = "sessions"
    errors: Sequence[type[Exception]] = ()
    parameters: Sequence[Parameter] = ()
    request_body: Any = None
    media_type: str = "application/json"
    schemas: Sequence[Any] = ()
    store_deadline: Literal["request", "body"] | None = None
    endpoint: Endpoint = field(init=False)

    def __call__(self, endpoint: Endpoint) -> Operation:
        self.endpoint = endpoint
        return self


def get_header(request: Request, name: bytes) -> str | None:
    """Return a header's values, joined as in RFC 9110; ``name`` is in lower case."""
    found: bytes | None = None
    for key, value in request.scope["headers"]:
        if key == name:
            found = value if found is None else found + b", " + value
    return None if found is None else found.decode("latin-1").strip(" \t")


def read_idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key header; None if it is absent.

    Raises:
        InvalidRequestError: it is empty, too long, or has a control character.
    """
    key = get_header(request, b"idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isprintable()):
        raise InvalidRequestError(
            f"invalid request: Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable characters"
        )
    return key


# Where the scope of a request has the name that ``authenticate`` of ``create_app`` returned.
IDENTITY = "sandbox_agent_identity"


def read_identity(request: Request) -> str:
    """Return who answers a permission request: the user that was authenticated, or the client's name.

    Raises:
        InvalidRequestError: as of read_client.
    """
    identity: str = request.scope.get(IDENTITY, "")
    return identity or read_client(request)


def read_client(request: Request) -> str:
    """Return the client's name, or UNNAMED.

    Raises:
        InvalidRequestError: it is too long or reserved for the server.
    """
    return check_client_name(get_header(request, CLIENT_HEADER_BYTES))


def accepts(request: Request, media_type: str) -> bool:
    """Return whether the Accept header allows a media type; a missing header allows all."""
    accepted = get_header(request, b"accept")
    if accepted is None or accepted == media_type:
        return True
    allowed = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return any(part.partition(";")[0].strip().lower() in allowed for part in accepted.split(","))


def require_json_body(request: Request) -> None:
    """Raise UnsupportedMediaTypeError unless the request's content type is JSON."""
    media_type = (get_header(request, b"content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError("unsupported media type: content-type must be application/json")


def read_text(request: Request, name: str) -> str | None:
    """Return a query parameter; None if it is absent or empty.

    Raises:
        InvalidRequestError: it contains a control character.
    """
    if not request.scope["query_string"]:
        return None
    value = request.query_params.get(name)
    if value and any(ord(character) < 32 for character in value):
        raise InvalidRequestError(f"invalid request: query parameter '{name}' contains a control character")
    return value or None


def read_flag(request: Request, name: str) -> bool:
    """Return a boolean query parameter; False if it is absent.

    Raises:
        InvalidRequestError: it is neither "true" nor "false".
    """
    value = request.query_params.get(name)
    if value is None:
        return False
    if value not in ("true", "false"):
        raise InvalidRequestError(f"invalid request: query parameter '{name}' must be true or false")
    return value == "true"


def read_number(
    request: Request, name: str, default: int | None = None, *, least: int = 0, most: int = MAX_NUMBER
) -> int | None:
    """Return an integer query parameter.

    Raises:
        InvalidRequestError: it is not an integer from ``least`` to ``most``.
    """
    value = request.query_params.get(name)
    if value is None:
        return default
    return parse_number(value, f"query parameter '{name}'", least=least, most=most)


def parse_number(value: str, what: str, *, least: int = 0, most: int = MAX_NUMBER) -> int:
    """Return the integer that a text represents.

    Raises:
        InvalidRequestError: it is not an integer from ``least`` to ``most``.
    """
    if not (value.isascii() and value.isdigit() and len(value) < 20 and least <= int(value) <= most):
        limits = f"of at least {least}" if most == MAX_NUMBER else f"from {least} to {most}"
        raise InvalidRequestError(f"invalid request: {what} must be an integer {limits}")
    return int(value)


async def read_json(request: Request, kind: type[Body], limit: int, *, known_only: bool = False) -> Body:
    """Read the request's body as JSON.

    Args:
        request: the request.
        kind: the type of its body.
        limit: how many bytes it may have.
        known_only: refuse members that the type does not have. ``_meta`` is allowed everywhere.

    Raises:
        UnsupportedMediaTypeError: its content type is not JSON.
        PayloadTooLargeError: it is larger than ``limit`` bytes.
        InvalidRequestError: it is not valid JSON, does not match the type, or has an unknown member.
    """
    require_json_body(request)
    body = await read_body(request, limit)
    try:
        decoded = msgspec.json.decode(body, type=kind)
        if known_only:
            _check_members(msgspec.json.decode(body), kind)
        return decoded
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"invalid request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequestError(
            "invalid request: the body is not valid JSON in UTF-8, or is nested too deeply"
        ) from None


def _check_members(value: object, kind: object, where: str = "") -> None:
    """Refuse members that the structs in a type do not have: a typo would change what the request means."""
    struct = _struct_in(kind)
    if struct is None:
        return
    if isinstance(value, list):
        for index, each in enumerate(cast("list[object]", value)):
            _check_members(each, struct, f"{where.removesuffix('.')}[{index}].")
    elif isinstance(value, dict):
        known = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        for name, member in cast("dict[str, object]", value).items():
            if name in known:
                _check_members(member, known[name], f"{where}{name}.")
            elif name != "_meta":
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
                raise InvalidRequestError(f"invalid request: unknown member '{where}{name}'; {hint}")


def _struct_in(kind: object) -> type[msgspec.Struct] | None:
    """Return the struct that a type is or contains: alone, optional, annotated, or as a list's items."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for each in get_args(kind) if (found := _struct_in(each)) is not None), None)


async def read_body(request: Request, limit: int) -> bytes:
    """Read the request's body, of which at most ``limit`` bytes are held in memory.

    Raises:
        PayloadTooLargeError: it is larger than ``limit`` bytes.
        InvalidRequestError: the client disconnected before the end of the body.
    """
    declared = get_header(request, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    async for part in receive_body(request):
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def receive_body(request: Request) -> AsyncGenerator[bytes]:
    """Yield the request's body in pieces, as they arrive.

    Raises:
        InvalidRequestError: the client disconnected before the end of the body.
    """
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequestError("invalid request: the body ended early")
        more = message.get("more_body", False)
        yield message.get("body", b"")


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"payload too large: the body is larger than {limit} bytes (set by --max-body-bytes)"
    )
