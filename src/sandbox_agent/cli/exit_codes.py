"""Exit codes of commands that wait for a turn."""

from __future__ import annotations

from typing import Final

# As in shells: 128 and the number of SIGINT.
INTERRUPTED: Final = 130
# 2 is a wrong command line, as in other programs.
EXIT_CODES: Final = {
    "end_turn": 0,
    "max_tokens": 3,
    "max_turn_requests": 4,
    "refusal": 5,
    "cancelled": INTERRUPTED,
}
OTHER_STOP: Final = 6


def exit_code(stop_reason: str) -> int:
    """Return the exit code for ACP's ``stopReason``. All unknown reasons share one."""
    return EXIT_CODES.get(stop_reason, OTHER_STOP)
