"""Times as users type them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

_AGE: Final = re.compile(r"(\d{1,9})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_time(text: str, now: datetime) -> datetime:
    """Parse an ISO 8601 date or time (local unless it has a UTC offset) or an age such as "2h".

    Raises:
        ValueError: The text is none of these.
    """
    age = _AGE.fullmatch(text.strip())
    try:
        if age is not None:
            return now - timedelta(**{_UNITS[age[2]]: int(age[1])})
        return datetime.fromisoformat(text.strip()).astimezone(now.tzinfo)
    except (ValueError, OverflowError):
        raise ValueError(f"invalid time '{text}': use an ISO 8601 time or an age such as 2h") from None
