"""``/v1/permissions``, and the replies to permission requests and questions."""

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
    NAME,
    SESSION_ID,
    client_of,
    path_name,
    session_id_of,
)
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.sessions import PermissionListResponse, PermissionReplyRequest, QuestionReplyRequest


async def list_permissions(request: Request) -> Response:
    """List the pending permission requests and questions."""
    return json_response(PermissionListResponse(permissions=await state_of(request).inbox.pending()))


async def reply_permission(request: Request) -> Response:
    """Answer a permission request."""
    session_id, permission_id = session_id_of(request), path_name(request, "permission_id")
    state = state_of(request)
    body = await read_json(request, PermissionReplyRequest, state.config.max_body_bytes)
    await state.inbox.reply_permission(session_id, permission_id, body.reply, by=client_of(request))
    return Response(status_code=204)


async def reply_question(request: Request) -> Response:
    """Answer a question."""
    session_id, question_id = session_id_of(request), path_name(request, "question_id")
    state = state_of(request)
    body = await read_json(request, QuestionReplyRequest, state.config.max_body_bytes)
    await state.inbox.reply_question(session_id, question_id, body.answers, by=client_of(request))
    return Response(status_code=204)


async def reject_question(request: Request) -> Response:
    """Reject a question."""
    session_id, question_id = session_id_of(request), path_name(request, "question_id")
    await state_of(request).inbox.reject_question(session_id, question_id, by=client_of(request))
    return Response(status_code=204)


_PERMISSION_ID = Parameter("permission_id", "path", "The id in the permission.requested event.", NAME)
_QUESTION_ID = Parameter("question_id", "path", "The id in the question.requested event.", NAME)
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
        summary="List pending permissions",
        description="Lists the unanswered permission requests and questions of all sessions, oldest first.",
        tag="sessions",
        answers={200: Answer("The pending requests.", PermissionListResponse)},
        errors=(StreamError,),
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/permissions/{permission_id}/reply",
        endpoint=reply_permission,
        operation_id="reply_permission",
        summary="Answer a permission request",
        description=(
            "The reply is `once`, `always` or `reject`; `always` means `once` if the agent offers nothing "
            "longer. The first answer wins: a later one gets 409 with the name of the client that answered. "
            "Sessions that are driven by an SDK can be answered, too."
        ),
        tag="sessions",
        parameters=(SESSION_ID, _PERMISSION_ID, CLIENT),
        request_body=PermissionReplyRequest,
        answers={204: Answer("The answer was sent to the agent.")},
        errors=_BODY_ERRORS,
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/questions/{question_id}/reply",
        endpoint=reply_question,
        operation_id="reply_question",
        summary="Answer a question",
        description=(
            "The body has one list per question of the request: the chosen options, or free text. The first "
            "answer wins."
        ),
        tag="sessions",
        parameters=(SESSION_ID, _QUESTION_ID, CLIENT),
        request_body=QuestionReplyRequest,
        answers={204: Answer("The answer was sent to the agent.")},
        errors=_BODY_ERRORS,
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/questions/{question_id}/reject",
        endpoint=reject_question,
        operation_id="reject_question",
        summary="Reject a question",
        description="Tells the agent that the user declines to answer. The first answer wins.",
        tag="sessions",
        parameters=(SESSION_ID, _QUESTION_ID, CLIENT),
        answers={204: Answer("The answer was sent to the agent.")},
        errors=_ERRORS,
    ),
)
