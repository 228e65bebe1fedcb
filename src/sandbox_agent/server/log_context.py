"""What a line of the log belongs to: the request, the connection and the session that are being handled.

The formatters of ``cli/logs.py`` add these fields to each line that is logged meanwhile.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

REQUEST_ID_HEADER = "X-Request-Id"
_HEADER = REQUEST_ID_HEADER.lower().encode()
# An id that a client chooses appears in the log and in the response.
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_NOTHING: Mapping[str, str] = MappingProxyType({})

_fields: ContextVar[Mapping[str, str]] = ContextVar("sandbox_agent_log_fields", default=_NOTHING)


def current_fields() -> Mapping[str, str]:
    """Return the fields of what is being handled."""
    return _fields.get()


def current_request_id() -> str | None:
    """Return the id of the request that is being handled; None outside of one."""
    return _fields.get().get("request_id")


def add_fields(**fields: str | None) -> None:
    """Add fields until the end of the enclosing ``log_fields``; None removes one."""
    merged = {**_fields.get(), **fields}
    _fields.set({name: value for name, value in merged.items() if value is not None})


@contextmanager
def log_fields(**fields: str | None) -> Generator[None]:
    """Add fields to the lines that are logged while the context lasts; None removes one."""
    token = _fields.set(_fields.get())
    add_fields(**fields)
    try:
        yield
    finally:
        _fields.reset(token)


def new_request_id() -> str:
    """Return an id for a request whose client has not chosen one. It identifies, and protects nothing."""
    return f"req_{random.getrandbits(64):016x}"


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id that a request has in its first X-Request-Id, or a new one if that is not well-formed."""
    for name, value in headers:
        if name == _HEADER:
            return value.decode() if _WELL_FORMED.fullmatch(value) else new_request_id()
    return new_request_id()


def request_id_header(request_id: str) -> tuple[bytes, bytes]:
    """Return the header of a response."""
    return _HEADER, request_id.encode()
