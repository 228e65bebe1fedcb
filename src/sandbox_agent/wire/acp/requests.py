"""Views of the permission request and of a prompt's response (ACP schema v1)."""

from __future__ import annotations

from typing import Any

import msgspec

from sandbox_agent.wire.acp.base import AcpStruct
from sandbox_agent.wire.acp.updates import ToolCallUpdate


class PermissionOption(AcpStruct, frozen=True):
    """An answer that may be given.

    ``kind`` is allow_once, allow_always, reject_once or reject_always; ``option_id`` is the agent's own.
    """

    option_id: str
    name: str = ""
    kind: str = ""


class PermissionRequest(AcpStruct, frozen=True):
    """The params of ``session/request_permission``; the tool call's id may come before its tool_call."""

    session_id: str = ""
    tool_call: ToolCallUpdate = ToolCallUpdate(tool_call_id="")
    options: list[PermissionOption] = msgspec.field(default_factory=list[PermissionOption])


class PromptResponse(AcpStruct, frozen=True):
    """The result of ``session/prompt``.

    Attributes:
        stop_reason: end_turn, max_tokens, max_turn_requests, refusal, cancelled, or a newer one; empty
            where the agent gave none.
        usage: the turn's tokens, if the agent reports them (``inputTokens``, ``outputTokens``, …).
    """

    stop_reason: str = ""
    usage: dict[str, Any] | None = None
