"""Exit codes of commands that wait for a turn."""

from __future__ import annotations

from typing import Final

__all__ = ["CANCELLED", "EXIT_CODES", "KILLED", "OTHER_STOP", "exit_code"]

CANCELLED: Final = 130
KILLED: Final = 137
# 2 is a wrong command line, as everywhere.
EXIT_CODES: Final = {
    "end_turn": 0,
    "max_tokens": 3,
    "max_turn_requests": 4,
    "refusal": 5,
    "cancelled": CANCELLED,
}
OTHER_STOP: Final = 6


def exit_code(stop_reason: str) -> int:
    """Return the exit code for ACP's ``stopReason``; one for all reasons that are not known here."""
    return EXIT_CODES.get(stop_reason, OTHER_STOP)
