"""What agents ask for: the inbox over all sessions, and the answers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import (
    AgentProcessExitedError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    RequestTimeoutError,
    ServerSessionNotFoundError,
    StreamError,
    UnsupportedMediaTypeError,
)
from sandbox_agent.server.http.operations import Answer, Operation, Parameter, read_json
from sandbox_agent.server.routes.session_helpers import (
    CLIENT,
    SESSION_ID,
    client_of,
    name_in_path,
    session_id_of,
)
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.sessions import PermissionListResponse, PermissionReplyRequest, QuestionReplyRequest

__all__ = ["OPERATIONS"]


async def list_permissions(request: Request) -> Response:
    """List what waits for an answer."""
    return json_response(PermissionListResponse(permissions=await state_of(request).inbox.pending()))


async def reply_permission(request: Request) -> Response:
    """Answer a permission."""
    session_id, permission_id = session_id_of(request), name_in_path(request, "permission_id")
    state = state_of(request)
    body = await read_json(request, PermissionReplyRequest, state.config.max_body_bytes)
    await state.inbox.reply_permission(session_id, permission_id, body.reply, by=client_of(request))
    return Response(status_code=204)


async def reply_question(request: Request) -> Response:
    """Answer a question."""
    session_id, question_id = session_id_of(request), name_in_path(request, "question_id")
    state = state_of(request)
    body = await read_json(request, QuestionReplyRequest, state.config.max_body_bytes)
    await state.inbox.reply_question(session_id, question_id, body.answers, by=client_of(request))
    return Response(status_code=204)


async def reject_question(request: Request) -> Response:
    """Refuse to answer a question."""
    session_id, question_id = session_id_of(request), name_in_path(request, "question_id")
    await state_of(request).inbox.reject_question(session_id, question_id, by=client_of(request))
    return Response(status_code=204)


_PERMISSION_ID = Parameter("permission_id", "path", "As in permission.requested.")
_QUESTION_ID = Parameter("question_id", "path", "As in question.requested.")
_ERRORS = (
    InvalidRequestError,
    NotFoundError,
    ServerSessionNotFoundError,
    ConflictError,
    AgentProcessExitedError,
    StreamError,
    RequestTimeoutError,
)
_BODY_ERRORS = (*_ERRORS, PayloadTooLargeError, UnsupportedMediaTypeError)

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/permissions",
        endpoint=list_permissions,
        operation_id="list_permissions",
        summary="What waits for an answer",
        description="The permissions and questions of all sessions that nobody has answered, oldest first.",
        tag="sessions",
        answers={200: Answer("What waits.", PermissionListResponse)},
        errors=(StreamError,),
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/permissions/{permission_id}/reply",
        endpoint=reply_permission,
        operation_id="reply_permission",
        summary="Answer a permission",
        description=(
            "`once`, `always` (once, where no more is offered) or `reject`. The first answer wins; a later "
            "one is 409 and says whose it was. Works for sessions that SDKs drive, too."
        ),
        tag="sessions",
        parameters=(SESSION_ID, _PERMISSION_ID, CLIENT),
        request_body=PermissionReplyRequest,
        answers={204: Answer("The agent has the answer.")},
        errors=_BODY_ERRORS,
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/questions/{question_id}/reply",
        endpoint=reply_question,
        operation_id="reply_question",
        summary="Answer a question",
        description=(
            "For each question that the agent asks at once, the chosen options or a text of one's own. The "
            "first answer wins."
        ),
        tag="sessions",
        parameters=(SESSION_ID, _QUESTION_ID, CLIENT),
        request_body=QuestionReplyRequest,
        answers={204: Answer("The agent has the answer.")},
        errors=_BODY_ERRORS,
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/questions/{question_id}/reject",
        endpoint=reject_question,
        operation_id="reject_question",
        summary="Refuse to answer a question",
        description="The agent is told that the user declines. The first answer wins.",
        tag="sessions",
        parameters=(SESSION_ID, _QUESTION_ID, CLIENT),
        answers={204: Answer("The agent has the answer.")},
        errors=_ERRORS,
    ),
)
