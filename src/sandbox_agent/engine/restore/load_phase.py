"""Which updates of a session retell its history while an agent opens the session again."""

from __future__ import annotations

from typing import Literal

import msgspec

# They open a session that the agent has had before.
OPENING_METHODS = frozenset({"session/load", "session/resume"})
# They describe the present whenever they are sent; every other update says what was said or done.
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

    Updates before the response retell the history if a user message is among them; without one they are
    news, such as a warning. So updates before the first user message are undecided until that message or the
    response. Some agents respond first and retell afterwards: updates after the response are past when the
    user's words came last before it, or come then, because outside a turn the user says nothing. The next
    prompt ends the phase, and ``PRESENT_UPDATES`` are never past.

    Attributes:
        state: "open" until the response, "answered" or "late" (the retelling continues) after it.
        users_last: whether the last update had the user's words.
        users_seen: whether an update before the response had them.
    """

    state: Literal["off", "open", "answered", "late"] = "off"
    users_last: bool = False
    users_seen: bool = False

    def begin(self) -> None:
        """Note that the request is sent."""
        self.state = "open"
        self.users_last = self.users_seen = False

    def answer(self) -> None:
        """Note that the response arrived: undecided updates are news."""
        if self.state == "open":
            self.state = "late" if self.users_last else "answered"

    def end(self) -> None:
        """Note that the request was refused, or a prompt is sent: updates are news from here on."""
        self.state = "off"

    def classify(self, kind: str | None) -> Verdict:
        """Return whether the next update, of this kind, retells the history.

        "undecided" updates are for the caller to hold: they are past if a later one is, and news otherwise.
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
