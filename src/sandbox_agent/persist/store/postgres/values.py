"""Values that PostgreSQL can hold, and rows of what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from sandbox_agent.persist.sql.ledger import clean
from sandbox_agent.persist.store.rows import PermissionRow, SessionRow, TurnRow

__all__ = [
    "MAX_NUMBER",
    "PERMISSION_COLUMNS",
    "SESSION_COLUMNS",
    "TURN_COLUMNS",
    "bounded",
    "digest",
    "from_text",
    "selected",
    "to_permission",
    "to_session",
    "to_text",
    "to_turn",
]

R = TypeVar("R", bound=msgspec.Struct)

MAX_NUMBER: Final = 2**63 - 1
SESSION_COLUMNS: Final = SessionRow.__struct_fields__
TURN_COLUMNS: Final = TurnRow.__struct_fields__
PERMISSION_COLUMNS: Final = PermissionRow.__struct_fields__

_ESCAPE: Final = "\x01"


def bounded(number: int) -> int:
    """Return the number that a column can hold which is nearest."""
    return min(max(number, -MAX_NUMBER), MAX_NUMBER)


def to_text(text: str) -> str:
    """Return the text as PostgreSQL can hold it.

    A lone surrogate becomes a question mark; a null character is escaped, and so is what escapes.
    """
    if not text.isascii():
        text = clean(text)
    if _ESCAPE in text:
        text = text.replace(_ESCAPE, _ESCAPE + "1")
    return text.replace("\0", _ESCAPE + "0") if "\0" in text else text


def from_text(text: str) -> str:
    """Return the text that ``to_text`` was given."""
    if _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE + "0", "\0").replace(_ESCAPE + "1", _ESCAPE)


def digest(text: str) -> bytes:
    """Return what stands for a name in an index."""
    return hashlib.blake2b(clean(text).encode(), digest_size=16).digest()


def selected(alias: str, columns: Sequence[str]) -> str:
    """Return the columns of a table in a statement."""
    return ", ".join(f"{alias}.{name}" for name in columns)


def _maker(row: type[R], columns: Sequence[str]) -> Callable[[Sequence[Any]], R]:
    def make(values: Sequence[Any]) -> R:
        members = (from_text(value) if isinstance(value, str) else value for value in values)
        return row(**dict(zip(columns, members, strict=True)))

    return make


to_session: Final[Callable[[Sequence[Any]], SessionRow]] = _maker(SessionRow, SESSION_COLUMNS)
to_turn: Final[Callable[[Sequence[Any]], TurnRow]] = _maker(TurnRow, TURN_COLUMNS)
to_permission: Final[Callable[[Sequence[Any]], PermissionRow]] = _maker(PermissionRow, PERMISSION_COLUMNS)
