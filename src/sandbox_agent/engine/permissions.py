"""The vocabulary of permissions, in the SDK, the server and the command line.

A *permission mode* says what a session may do: ``ask``, ``accept_edits``, ``allow``, ``plan``, ``read_only``.
It decides requests by the kind of the tool call, and stands for a mode of the agent where the agent has one.
A *reply* answers one request: ``once``, ``always`` or ``reject`` (ACP, session/request_permission).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

from sandbox_agent.errors import UnsupportedPermissionReplyError
from sandbox_agent.wire.requests import PermissionReply, available_replies

PermissionMode = Literal["ask", "accept_edits", "allow", "plan", "read_only"]
Verdict = Literal["allow", "reject", "ask"]

PERMISSION_MODES: tuple[PermissionMode, ...] = get_args(PermissionMode)

# A mode's verdict by the tool call's kind, and for all other kinds.
_VERDICTS: dict[PermissionMode, tuple[dict[str, Verdict], Verdict]] = {
    "ask": ({}, "ask"),
    "accept_edits": ({"edit": "allow"}, "ask"),
    "allow": ({}, "allow"),
    "plan": ({}, "ask"),
    "read_only": (dict.fromkeys(("edit", "delete", "move", "execute"), "reject"), "ask"),
}


class AgentModes(NamedTuple):
    """What an agent's modes mean.

    Attributes:
        names: by permission mode, the agent's modes that do what it says, best first; "#name" is the end of
            an id. For the other permission modes the requests are decided by kind, so the agent has to be in
            a mode in which it asks.
        never_asks: whether the agent uses its tools without asking, whatever the client says.
    """

    names: Mapping[PermissionMode, Sequence[str]]
    never_asks: bool = False


def _modes(*names: str) -> dict[PermissionMode, tuple[str, ...]]:
    """Return the names in each column, best first, by permission mode; an empty column is left out."""
    columns = zip(PERMISSION_MODES, names, strict=True)
    return {mode: tuple(column.split()) for mode, column in columns if column}


# Columns: ask, accept_edits, allow, plan, read_only.
_AGENT_MODES: dict[str, dict[PermissionMode, tuple[str, ...]]] = {
    "claude": _modes("default", "acceptEdits", "bypassPermissions", "plan", "default"),
    "codex": _modes("read-only", "read-only", "agent-full-access full-access", "read-only", "read-only"),
    "copilot": _modes("#agent", "#agent", "", "#plan", "#agent"),
    "gemini": _modes("default", "autoEdit", "yolo", "plan", "default"),
    "goose": _modes("approve", "approve", "auto", "approve", "approve"),
    "hermes": _modes("default", "accept_edits", "dont_ask", "default", "default"),
    "kimi": _modes("default", "default", "yolo", "plan", "default"),
    "mock": _modes("default normal", "acceptEdits", "", "plan", "default normal"),
    "opencode": _modes("ask", "ask", "", "plan", "ask"),
    "qwen": _modes("default", "auto-edit", "yolo", "plan", "default"),
}
_NEVER_ASK = frozenset({"pi"})
# Names that mean the same at most agents.
_COMMON = _modes(
    "default", "acceptEdits accept_edits auto-edit autoEdit", "bypassPermissions yolo", "plan", "read-only"
)
_KINDS: dict[PermissionReply, tuple[str, ...]] = {
    "once": ("allow_once",),
    "always": ("allow_always", "allow_once"),
    "reject": ("reject_once", "reject_always"),
}
# Nothing is allowed for longer than once, unless that is all that can be allowed.
_REPLIES: dict[Verdict, tuple[PermissionReply, ...]] = {
    "allow": ("once", "always"),
    "reject": ("reject",),
    "ask": (),
}


# modes


def is_permission_mode(value: object) -> TypeGuard[PermissionMode]:
    """Return whether the value is a permission mode."""
    return value in PERMISSION_MODES


def decide_by_mode(mode: PermissionMode, kind: str | None) -> Verdict:
    """Return what a permission mode says to a tool call of that kind; None counts as "other"."""
    by_kind, other = _VERDICTS[mode]
    return by_kind.get(kind or "other", other)


def known_modes(agent: str) -> AgentModes | None:
    """Return what the modes of an agent mean; None if that is not known."""
    if agent not in _AGENT_MODES and agent not in _NEVER_ASK:
        return None
    return AgentModes(_AGENT_MODES.get(agent, {}), agent in _NEVER_ASK)


def agent_mode_of(
    agent: str, mode: PermissionMode, listed: Sequence[str], modes: AgentModes | None = None
) -> str | None:
    """Return the agent's mode that a permission mode stands for.

    Args:
        agent: the agent's id.
        mode: the permission mode.
        listed: the ids of the modes that the agent offers.
        modes: what the agent's modes mean, if its entry or the server says so.

    Returns:
        None where the agent offers no such mode: only its requests are decided then.
    """
    own = _names(agent, modes) or {}
    names = (*own.get(mode, ()), *_COMMON[mode])
    if mode == "allow":
        # Where the agent always asks, its requests are allowed.
        names += (*own.get("ask", ()), *_COMMON["ask"])
    for name in names:
        found = next((each for each in listed if _is_named(each, name)), None)
        if found is not None:
            return found
    return None


def permission_mode_of(
    agent: str, agent_mode: str | None, modes: AgentModes | None = None
) -> PermissionMode | None:
    """Return the permission mode that an agent's mode stands for, None where that is unknown."""
    if not agent_mode:
        return None
    own = _names(agent, modes)
    for mode, names in (_COMMON if own is None else own).items():
        if any(_is_named(agent_mode, name) for name in names):
            return mode
    return None


def check_agreement(
    agent: str, agent_mode: str | None, mode: PermissionMode | None, modes: AgentModes | None = None
) -> None:
    """Refuse an agent's mode that contradicts a permission mode, and an agent that cannot keep to that mode.

    Raises:
        ValueError: they disagree, or the agent never asks for permission.
    """
    never_asks = agent in _NEVER_ASK if modes is None else modes.never_asks
    if never_asks and mode not in (None, "allow"):
        raise ValueError(
            f"{agent} never asks for permission, so the permission mode '{mode}' has no effect: choose "
            "another agent, or 'allow' where it may do everything"
        )
    if not agent_mode or mode is None:
        return
    own = _names(agent, modes)
    names = (_COMMON if own is None else own).get(mode, ())
    if any(_is_named(agent_mode, name) for name in names):
        return
    meaning = permission_mode_of(agent, agent_mode, modes)
    if (meaning is None and not (own or {}).get(mode)) or meaning == mode:
        return
    hint = f": it means '{meaning}'" if meaning is not None else f": use {' or '.join(names)}"
    raise ValueError(
        f"mode '{agent_mode}' of {agent} contradicts the permission mode '{mode}'{hint}; give one of the two"
    )


def _names(agent: str, modes: AgentModes | None) -> Mapping[PermissionMode, Sequence[str]] | None:
    """Return the agent's modes by permission mode; None if they are not known."""
    return _AGENT_MODES.get(agent) if modes is None else modes.names or None


def _is_named(agent_mode: str, name: str) -> bool:
    return agent_mode.endswith(name) if name.startswith("#") else agent_mode == name


# replies


def is_reply(value: object) -> TypeGuard[PermissionReply]:
    """Return whether the value is one of the three replies."""
    return value in get_args(PermissionReply)


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


def verdict_outcome(
    permission_id: str, options: Sequence[Mapping[str, Any]], verdict: Verdict
) -> dict[str, Any] | None:
    """Return the result that a verdict gives a request; None where a person has to decide.

    A request without an option to allow is for a person; one without an option to reject is cancelled.
    """
    for reply in _REPLIES[verdict]:
        try:
            return select_option(permission_id, options, reply)
        except UnsupportedPermissionReplyError:
            continue
    return cancelled_outcome() if verdict == "reject" else None


def cancelled_outcome() -> dict[str, Any]:
    """Return the result of a request that no one decided, or whose turn was cancelled."""
    return {"outcome": {"outcome": "cancelled"}}
