"""Which option of a permission request a reply means (ACP, session/request_permission)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard, get_args

from sandbox_agent.errors import UnsupportedPermissionReplyError

__all__ = ["PermissionReply", "available_replies", "cancelled_outcome", "is_reply", "select_option"]

PermissionReply = Literal["once", "always", "reject"]

_KINDS: dict[PermissionReply, tuple[str, ...]] = {
    "once": ("allow_once",),
    "always": ("allow_always", "allow_once"),
    "reject": ("reject_once", "reject_always"),
}
_REPLY_OF_KIND: dict[str, PermissionReply] = {
    "allow_once": "once",
    "allow_always": "always",
    "reject_once": "reject",
    "reject_always": "reject",
}


def is_reply(value: object) -> TypeGuard[PermissionReply]:
    """Whether the value is one of the three replies."""
    return value in get_args(PermissionReply)


def available_replies(options: Sequence[Mapping[str, Any]]) -> list[PermissionReply]:
    """Return the replies that the options stand for, each once, in the options' order."""
    found: dict[PermissionReply, None] = {}
    for option in options:
        reply = _REPLY_OF_KIND.get(str(option.get("kind")))
        if reply is not None:
            found[reply] = None
    return list(found)


def select_option(
    permission_id: str, options: Sequence[Mapping[str, Any]], reply: PermissionReply
) -> dict[str, Any]:
    """Return the result that answers the request with that reply.

    "always" falls back to allowing once, "reject" to rejecting always.

    Raises:
        UnsupportedPermissionReplyError: the request has no option for it.
    """
    for kind in _KINDS.get(reply, ()):
        for option in options:
            if option.get("kind") == kind:
                return {"outcome": {"outcome": "selected", "optionId": option.get("optionId")}}
    raise UnsupportedPermissionReplyError(permission_id, reply, available_replies(options))


def cancelled_outcome() -> dict[str, Any]:
    """Return the result that says the user was not asked or the turn was cancelled."""
    return {"outcome": {"outcome": "cancelled"}}
