"""The columns of the store's rows, and rows of what was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sandbox_agent.persist.store.rows import PermissionRow, SessionRow, TurnRow
from sandbox_agent.persist.store.sqlite.values import as_bytes

__all__ = [
    "PERMISSION_COLUMNS",
    "PERMISSION_SELECTED",
    "SESSION_COLUMNS",
    "SESSION_SELECTED",
    "TURN_COLUMNS",
    "TURN_SELECTED",
    "to_permission",
    "to_session",
    "to_turn",
]

SESSION_COLUMNS: Final = SessionRow.__struct_fields__
TURN_COLUMNS: Final = TurnRow.__struct_fields__
PERMISSION_COLUMNS: Final = PermissionRow.__struct_fields__
_JSON: Final = frozenset({"usage", "settings", "prompt", "request_id", "metadata"})


def _selected(alias: str, columns: Sequence[str]) -> list[str]:
    return [
        f"CAST({alias}.{name} AS TEXT)"
        if name in _JSON
        else f"hex({alias}.{name})"
        if name == "digest"
        else f"{alias}.{name}"
        for name in columns
    ]


# The columns as values_of JSON; the tables are s, t and p in such queries.
SESSION_SELECTED: Final = _selected("s", SESSION_COLUMNS)
TURN_SELECTED: Final = _selected("t", TURN_COLUMNS)
PERMISSION_SELECTED: Final = _selected("p", PERMISSION_COLUMNS)


def _members(columns: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return {
        name: as_bytes(value) if name in _JSON else value for name, value in zip(columns, values, strict=True)
    }


def to_session(values: Sequence[Any]) -> SessionRow:
    """Return the row of what SESSION_SELECTED gave."""
    members = _members(SESSION_COLUMNS, values)
    members["managed"], members["ended"] = bool(members["managed"]), bool(members["ended"])
    return SessionRow(**members)


def to_turn(values: Sequence[Any]) -> TurnRow:
    """Return the row of what TURN_SELECTED gave."""
    members = _members(TURN_COLUMNS, values)
    members["digest"] = bytes.fromhex(members["digest"])
    return TurnRow(**members)


def to_permission(values: Sequence[Any]) -> PermissionRow:
    """Return the row of what PERMISSION_SELECTED gave."""
    return PermissionRow(**_members(PERMISSION_COLUMNS, values))
