"""Detects the updates by which an agent repeats the history while it opens a session again."""

from __future__ import annotations

from typing import Literal

import msgspec

# Methods that open a session that the agent had before.
OPENING_METHODS = frozenset({"session/load", "session/resume"})
# Updates that describe the current state; all other updates belong to the history.
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

Verdict = Literal["past", "news", "undecided"]


class Retelling(msgspec.Struct):
    """The phase from the request that opens a session to the next prompt.

    Updates before the response repeat the history if a user message is among them; otherwise they are news,
    such as a warning. So updates before the first user message are undecided until that message or the
    response. Some agents respond first and repeat the history afterwards: updates after the response are past
    if a user message was the last update before it, or comes after it, because users send no messages outside
    a turn. The next prompt ends the phase, and ``PRESENT_UPDATES`` are never past.

    Attributes:
        state: "open" until the response, "answered" or "late" (the history continues) after it.
        users_last: whether the last update was a user message.
        users_seen: whether an update before the response was one.
    """

    state: Literal["off", "open", "answered", "late"] = "off"
    users_last: bool = False
    users_seen: bool = False

    def begin(self) -> None:
        """Record that the request is sent."""
        self.state = "open"
        self.users_last = self.users_seen = False

    def answer(self) -> None:
        """Record that the response was received: undecided updates are news."""
        if self.state == "open":
            self.state = "late" if self.users_last else "answered"

    def end(self) -> None:
        """Record that the request was refused, or that a prompt is sent: later updates are news."""
        self.state = "off"

    def classify(self, kind: str | None) -> Verdict:
        """Return whether the next update, of this kind, repeats the history.

        The caller holds "undecided" updates: they are past if a later one is, otherwise news.
        """
        if self.state == "off" or kind in PRESENT_UPDATES:
            return "news"
        if self.state == "answered":
            if kind != _USERS:
                return "news"
            self.state = "late"
        self.users_last = kind == _USERS
        self.users_seen = self.users_seen or self.users_last
        return "past" if self.users_seen or self.state == "late" else "undecided"
