"""Access to unchecked JSON values of agents."""

from __future__ import annotations

from typing import Any, cast


def members(value: object) -> dict[str, Any]:
    """Return an object's members, or an empty dict if the value is not an object."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def elements(value: object) -> list[Any]:
    """Return an array's elements, or an empty list if the value is not an array."""
    return cast("list[Any]", value) if isinstance(value, list) else []
