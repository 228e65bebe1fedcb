"""What a check has found."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "warning", "problem"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of a check.

    Attributes:
        check: what was checked.
        status: "problem" if something does not work, "warning" if something may not.
        message: what was found. It has no secrets.
        advice: what to do.
    """

    check: str
    status: Status
    message: str
    advice: str | None = None


def ok(check: str, message: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, advice: str) -> Finding:
    """Return a finding about what may not work."""
    return Finding(check, "warning", message, advice)


def problem(check: str, message: str, advice: str) -> Finding:
    """Return a finding about what does not work."""
    return Finding(check, "problem", message, advice)
