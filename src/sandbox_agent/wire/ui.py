"""The body that the AI SDK's chat transport sends (npm ``ai``)."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from sandbox_agent.wire.api import Body
from sandbox_agent.wire.sessions import CreateSessionRequest


class UiRequest(Body, kw_only=True):
    """``POST /v1/sessions/{session_id}/ui``: a chat of the AI SDK. Its other members are ignored.

    Attributes:
        messages: the chat's UIMessages. Only the last one is used: a user's message is sent to the agent; an
            assistant's message has answers to permission requests.
        id: the chat's id.
        trigger: "submit-message" or "regenerate-message"; the latter sends the last message again.
        message_id: the message that is replaced, or that is continued.
        session: how the session is created if there is none of that id: the body of
            `POST /v1/sessions/{session_id}`.
    """

    messages: Annotated[list[dict[str, Any]], Meta(extra_json_schema={"minItems": 1})]
    id: str | None = None
    trigger: str | None = None
    message_id: str | None = None
    session: CreateSessionRequest | None = None
