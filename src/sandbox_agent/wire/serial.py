"""Public objects as JSON: ``to_dict``, ``to_json``, and what FastAPI needs to return them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, cast

import msgspec

from sandbox_agent.wire.jsonrpc import dumps

__all__ = ["Serializable", "short_repr", "to_plain", "to_time"]


class Serializable:
    """Base of the public types that have a JSON form.

    ``msgspec.json.encode`` writes the same form, and pydantic and FastAPI use it for fields and responses.
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the object as a dict of JSON values, with the names that it has on the wire."""
        return cast("dict[str, Any]", to_plain(self))

    def to_json(self) -> str:
        """Return the object as JSON."""
        return dumps(self.to_dict()).decode()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> Any:
        """Let pydantic keep instances as they are and write them as ``to_dict`` returns them."""
        schema: Any = import_module("pydantic_core.core_schema")  # only pydantic calls this
        written = schema.plain_serializer_function_ser_schema(_write_instance)
        return schema.is_instance_schema(cls, serialization=written)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: object, _handler: object) -> dict[str, Any]:
        """Return the JSON schema that FastAPI shows."""
        return {"type": "object", "title": cls.__name__}


def _write(value: object) -> object:
    if isinstance(value, Serializable):
        return value.to_dict()
    return os.fspath(cast("os.PathLike[str]", value)) if isinstance(value, os.PathLike) else str(value)


def _write_instance(value: Serializable) -> dict[str, Any]:
    return value.to_dict()


def to_plain(value: object) -> object:
    """Return an object as JSON values."""
    return msgspec.to_builtins(value, enc_hook=_write)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Year 9999, the last that a datetime can hold.
_LAST_MS = 253_402_300_799_999


def to_time(milliseconds: int) -> datetime:
    """Return milliseconds since the epoch as a datetime in UTC; values out of range are clamped."""
    return _EPOCH + timedelta(milliseconds=min(max(milliseconds, 0), _LAST_MS))


def short_repr(value: object, *names: str) -> str:
    """Return a representation with some of an object's attributes: those that are short and not secret."""
    given = ((name, getattr(value, name)) for name in names)
    shown = ", ".join(f"{name}={each!r}" for name, each in given if each is not None)
    return f"{type(value).__name__}({shown})"
