"""Requests of agents to the user: permissions and questions, read from the stored event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from sandbox_agent.wire.jsonrpc import elements, members
from sandbox_agent.wire.objects import PermissionOption, PermissionToolCall
from sandbox_agent.wire.questions import QuestionField, read_fields, read_question
from sandbox_agent.wire.serial import Serializable, short_repr, to_time

if TYPE_CHECKING:
    from sandbox_agent.wire.records import SessionEvent

__all__ = [
    "PERMISSION_METHOD",
    "PermissionReply",
    "PermissionRequest",
    "QuestionRequest",
    "available_replies",
    "may_be_request",
    "read_permission",
    "read_question_request",
    "read_request",
]

PermissionReply = Literal["once", "always", "reject"]
PERMISSION_METHOD = "session/request_permission"

_REPLY_OF_KIND: dict[str, PermissionReply] = {
    "allow_once": "once",
    "allow_always": "always",
    "reject_once": "reject",
    "reject_always": "reject",
}


class PermissionRequest(Serializable, msgspec.Struct, frozen=True, rename="camel"):
    """An agent's request to use a tool.

    Attributes:
        id: the request's id for ``respond_permission``; not the agent's own id.
        session_id: the local session id.
        agent_session_id: the agent's session id.
        created_at: when the request was received, in milliseconds since the epoch.
        tool_call: the tool call, in ACP's shape; its members are attributes too.
        options: the possible answers, in ACP's shape; their members are attributes too.
        available_replies: the replies ("once", "always", "reject") that the options offer.
        raw_request: the request's params.
    """

    id: str
    session_id: str
    agent_session_id: str
    created_at: int
    tool_call: PermissionToolCall
    options: list[PermissionOption]
    available_replies: list[PermissionReply]
    raw_request: dict[str, Any]

    @property
    def created_time(self) -> datetime:
        """``created_at`` as a datetime in UTC."""
        return to_time(self.created_at)

    def __repr__(self) -> str:
        """Return all but the raw request."""
        return short_repr(self, "id", "session_id", "tool_call", "available_replies")


class QuestionRequest(Serializable, msgspec.Struct, frozen=True, rename="camel"):
    """An agent's question to the user.

    Attributes:
        id: the question's id for ``respond_question``; not the agent's own id.
        session_id: the local session id.
        agent_session_id: the agent's session id.
        created_at: when the question was received, in milliseconds since the epoch.
        message: the question.
        fields: its parts, in the order of their answers.
        method: the agent's method, such as "elicitation/create".
        raw_request: the request's params.
    """

    id: str
    session_id: str
    agent_session_id: str
    created_at: int
    message: str
    fields: list[QuestionField]
    method: str
    raw_request: dict[str, Any]

    @property
    def created_time(self) -> datetime:
        """``created_at`` as a datetime in UTC."""
        return to_time(self.created_at)

    def __repr__(self) -> str:
        """Return all but the raw request."""
        return short_repr(self, "id", "session_id", "message", "fields")


def read_permission(event: SessionEvent) -> PermissionRequest:
    """Return the permission request in an event."""
    params = members(event.payload.get("params"))
    given: list[object] = elements(params.get("options"))
    options = [PermissionOption(cast("dict[str, Any]", each)) for each in given if isinstance(each, dict)]
    return PermissionRequest(
        id=event.id,
        session_id=event.session_id,
        agent_session_id=str(params.get("sessionId") or ""),
        created_at=event.created_at,
        tool_call=PermissionToolCall(members(params.get("toolCall"))),
        options=options,
        available_replies=available_replies(options),
        raw_request=params,
    )


def read_question_request(event: SessionEvent) -> QuestionRequest | None:
    """Return the question in an event, or None if the event is another request."""
    method, params = str(event.payload.get("method")), members(event.payload.get("params"))
    question = read_question(method, params)
    if question is None:
        return None
    return QuestionRequest(
        id=event.id,
        session_id=event.session_id,
        agent_session_id=str(params.get("sessionId") or ""),
        created_at=event.created_at,
        message=question.prompt,
        fields=read_fields(method, params),
        method=method,
        raw_request=params,
    )


def may_be_request(envelope: bytes) -> bool:
    """Return whether an envelope must be decoded to know whether it is a request to the user."""
    return b"request_permission" in envelope or b"elicitation" in envelope or b"question" in envelope


def read_request(event: SessionEvent) -> PermissionRequest | QuestionRequest | None:
    """Return the agent's request to the user in an event, or None if it is anything else."""
    if event.sender != "agent" or "id" not in event.payload or "method" not in event.payload:
        return None
    is_permission = event.payload["method"] == PERMISSION_METHOD
    return read_permission(event) if is_permission else read_question_request(event)


def available_replies(options: Sequence[Mapping[str, Any]]) -> list[PermissionReply]:
    """Return the replies that the options stand for, each once, in the options' order."""
    found: dict[PermissionReply, None] = {}
    for option in options:
        reply = _REPLY_OF_KIND.get(str(option.get("kind")))
        if reply is not None:
            found[reply] = None
    return list(found)
