"""``/v1/permissions``, and the replies to permission requests and questions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import (
    ConflictError,
    NotFoundError,
    ServerSessionNotFoundError,
    StoreUnavailableError,
)
from sandbox_agent.server.http.operations import (
    AGENT_ERRORS,
    Answer,
    Operation,
    Parameter,
    read_identity,
    read_json,
)
from sandbox_agent.server.routes.session_helpers import (
    CLIENT,
    NAME,
    SESSION_ID,
    path_name,
    session_id_of,
)
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.sessions import PermissionListResponse, PermissionReplyRequest, QuestionReplyRequest

_PERMISSION_ID = Parameter("permission_id", "path", "The id in the permission.requested event.", NAME)
_QUESTION_ID = Parameter("question_id", "path", "The id in the question.requested event.", NAME)
_ERRORS = (NotFoundError, ServerSessionNotFoundError, ConflictError, StoreUnavailableError, *AGENT_ERRORS)


@Operation(
    "GET",
    "/v1/permissions",
    answers={200: Answer("The pending requests.", PermissionListResponse)},
    errors=(StoreUnavailableError,),
    store_deadline="request",
)
async def list_permissions(request: Request) -> Response:
    """List pending permissions.

    Lists the unanswered permission requests and questions of all sessions, oldest first.
    """
    return json_response(PermissionListResponse(permissions=await state_of(request).inbox.pending()))


@Operation(
    "POST",
    "/v1/sessions/{session_id}/permissions/{permission_id}/reply",
    parameters=(SESSION_ID, _PERMISSION_ID, CLIENT),
    request_body=PermissionReplyRequest,
    answers={204: Answer("The answer was sent to the agent.")},
    errors=_ERRORS,
)
async def reply_permission(request: Request) -> Response:
    """Answer a permission request.

    The reply is `once`, `always` or `reject`; `always` means `once` if the agent offers nothing longer. The
    first answer wins: a later one gets 409 with the name of the client that answered. Sessions that are
    driven by an SDK can be answered, too.
    """
    session_id, permission_id = session_id_of(request), path_name(request, "permission_id")
    state = state_of(request)
    body = await read_json(request, PermissionReplyRequest, state.config.max_body_bytes, known_only=True)
    await state.inbox.reply_permission(session_id, permission_id, body.reply, by=read_identity(request))
    return Response(status_code=204)


@Operation(
    "POST",
    "/v1/sessions/{session_id}/questions/{question_id}/reply",
    parameters=(SESSION_ID, _QUESTION_ID, CLIENT),
    request_body=QuestionReplyRequest,
    answers={204: Answer("The answer was sent to the agent.")},
    errors=_ERRORS,
)
async def reply_question(request: Request) -> Response:
    """Answer a question.

    The body has one list per question of the request: the chosen options, or free text. The first answer
    wins.
    """
    session_id, question_id = session_id_of(request), path_name(request, "question_id")
    state = state_of(request)
    body = await read_json(request, QuestionReplyRequest, state.config.max_body_bytes, known_only=True)
    await state.inbox.reply_question(session_id, question_id, body.answers, by=read_identity(request))
    return Response(status_code=204)


@Operation(
    "POST",
    "/v1/sessions/{session_id}/questions/{question_id}/reject",
    parameters=(SESSION_ID, _QUESTION_ID, CLIENT),
    answers={204: Answer("The answer was sent to the agent.")},
    errors=_ERRORS,
)
async def reject_question(request: Request) -> Response:
    """Reject a question.

    Tells the agent that the user declines to answer. The first answer wins.
    """
    session_id, question_id = session_id_of(request), path_name(request, "question_id")
    await state_of(request).inbox.reject_question(session_id, question_id, by=read_identity(request))
    return Response(status_code=204)


OPERATIONS = (
    list_permissions,
    reply_permission,
    reply_question,
    reject_question,
)
