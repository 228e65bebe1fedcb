"""The cursor of a store's sessions: the key of the page's last, newest first."""

from __future__ import annotations

from sandbox_agent.errors import InvalidRequestError


def key_before(cursor: str | None, largest: int) -> int:
    """Return the key that the keys of the page are below.

    Args:
        cursor: as the page before gave it; None is the first page's.
        largest: the largest key of all.

    Raises:
        InvalidRequestError: it is no such cursor.
    """
    if cursor is None:
        return largest
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= len(str(largest))):
        raise InvalidRequestError(
            f"the cursor {cursor[:40]!r} is not one of this server's: give the nextCursor of the page before"
        )
    return min(int(cursor), largest)
