"""Reading JSON in which an agent may have written anything."""

from __future__ import annotations

from typing import Any, cast

__all__ = ["elements", "members"]


def members(value: object) -> dict[str, Any]:
    """Return an object's members; none where it is no object."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def elements(value: object) -> list[Any]:
    """Return an array's elements; none where it is no array."""
    return cast("list[Any]", value) if isinstance(value, list) else []
