"""Moments as people type them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

__all__ = ["parse_moment"]

_AGO: Final = re.compile(r"(\d{1,9})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_moment(text: str, now: datetime) -> datetime:
    """Return the moment of a date, a date with a time (local where it has no zone), or "2h" ago.

    Raises:
        ValueError: it is none of these.
    """
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text.strip()).astimezone(now.tzinfo)
    except (ValueError, OverflowError):
        raise ValueError(f"'{text}' is no moment: give 2026-01-31, 2026-01-31T12:00, 30m, 2h or 7d") from None
