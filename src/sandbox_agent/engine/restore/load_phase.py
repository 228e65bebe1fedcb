"""Which of a session's updates are its past: what an agent tells again when it opens the session."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["OPENING_METHODS", "PRESENT_UPDATES", "Retelling"]

# They open a session that the agent has had before.
OPENING_METHODS = frozenset({"session/load", "session/resume"})
# What is so now, whenever it is told; every other update tells what was said or done.
PRESENT_UPDATES = frozenset(
    {
        "available_commands_update",
        "config_option_update",
        "current_mode_update",
        "session_info_update",
        "usage_update",
    }
)
_USERS = "user_message_chunk"


class Retelling(msgspec.Struct):
    """From the request that opens a session to the next prompt.

    What the agent says before its response is the past. Some answer first and tell the rest later: so are
    updates behind the response when the user's words were the last that was told, or come then: outside a
    turn the user says nothing. The next prompt ends it, and what is so now (``PRESENT_UPDATES``) is never
    past.

    Attributes:
        state: "open" until the response, "answered" or "late" (more is told) after it.
        users_last: whether the user's words were told last.
    """

    state: Literal["off", "open", "answered", "late"] = "off"
    users_last: bool = False

    def begin(self) -> None:
        """The request goes out."""
        self.state = "open"
        self.users_last = False

    def answer(self) -> None:
        """The response came."""
        if self.state == "open":
            self.state = "late" if self.users_last else "answered"

    def end(self) -> None:
        """It was refused, or a prompt goes out: what comes now is new."""
        self.state = "off"

    def is_past(self, kind: str | None) -> bool:
        """Take the next update's kind, and say whether it tells what was before."""
        if self.state == "off" or kind in PRESENT_UPDATES:
            return False
        if self.state == "answered":
            if kind != _USERS:
                return False
            self.state = "late"
        self.users_last = kind == _USERS
        return True
