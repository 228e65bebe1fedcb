"""Replies to permission requests, as a table."""

from __future__ import annotations

import pytest

from sandbox_agent.engine.permissions import (
    PermissionReply,
    available_replies,
    cancelled_outcome,
    is_reply,
    select_option,
)
from sandbox_agent.errors import UnsupportedPermissionReplyError


def options(*kinds: str) -> list[dict[str, str]]:
    """Return options of these kinds, with ids that say which they are."""
    return [{"optionId": f"{number}:{kind}", "name": kind, "kind": kind} for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "reply", "chosen"),
    [
        (("allow_once", "allow_always"), "once", "0:allow_once"),
        (("allow_always", "allow_once"), "once", "1:allow_once"),
        (("allow_once", "allow_always"), "always", "1:allow_always"),
        (("allow_once",), "always", "0:allow_once"),
        (("reject_always", "reject_once"), "reject", "1:reject_once"),
        (("reject_always",), "reject", "0:reject_always"),
        (("allow_once", "allow_once"), "once", "0:allow_once"),
    ],
)
def test_a_reply_chooses_the_option_of_its_kind(
    kinds: tuple[str, ...], reply: PermissionReply, chosen: str
) -> None:
    result = select_option("p", options(*kinds), reply)
    assert result == {"outcome": {"outcome": "selected", "optionId": chosen}}


@pytest.mark.parametrize(
    ("kinds", "reply", "available"),
    [
        (("allow_always", "reject_once"), "once", ["always", "reject"]),
        (("reject_once",), "always", ["reject"]),
        (("allow_once", "allow_always"), "reject", ["once", "always"]),
        ((), "once", []),
        (("from_the_future",), "once", []),
    ],
)
def test_a_reply_without_an_option_is_refused_with_those_there_are(
    kinds: tuple[str, ...], reply: PermissionReply, available: list[str]
) -> None:
    with pytest.raises(UnsupportedPermissionReplyError) as caught:
        select_option("p", options(*kinds), reply)
    assert caught.value.available_replies == available
    assert caught.value.requested_reply == reply


def test_available_replies_are_listed_once_in_the_options_order() -> None:
    kinds = ("reject_always", "allow_once", "reject_once", "x", "allow_always")
    assert available_replies(options(*kinds)) == ["reject", "once", "always"]
    assert available_replies([{}, {"kind": None}]) == []


@pytest.mark.parametrize(
    ("value", "known"), [("once", True), ("reject", True), ("allow_once", False), (None, False)]
)
def test_only_the_three_replies_are_replies(value: object, known: bool) -> None:
    assert is_reply(value) is known


def test_cancelled_is_acps_outcome() -> None:
    assert cancelled_outcome() == {"outcome": {"outcome": "cancelled"}}
