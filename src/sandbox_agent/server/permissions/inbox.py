"""The unanswered permission requests and questions of all sessions.

That the first answer wins is decided where answers meet: in ``engine.correlate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from sandbox_agent.engine.permissions import PermissionReply, select_option
from sandbox_agent.engine.questions import answer_result, rejection_result
from sandbox_agent.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedPermissionReplyError,
)
from sandbox_agent.persist.store import PermissionRow, SessionRow, SessionStore
from sandbox_agent.server.errors import session_not_found
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, elements, loads, members
from sandbox_agent.wire.sessions import PendingPermission

# The limit of the list.
MAX_PENDING = 10_000
_REPLY_OF_STATUS = {"accept": "once", "accept_for_session": "always"}


class Answering(Protocol):
    """Sends an answer to the agent that made the request."""

    async def answer(self, session_id: str, permission_id: str, result: dict[str, Any], by: str) -> bool:
        """Answer a request; return False if another answer was first."""
        ...


class Inbox:
    """Lists and answers the pending requests."""

    def __init__(self, store: SessionStore, sessions: Answering) -> None:
        self._store = store
        self._sessions = sessions

    async def pending(self) -> list[PendingPermission]:
        """Return the pending permission requests and questions, oldest first."""
        rows = await self._store.pending_permissions(limit=MAX_PENDING)
        return [
            PendingPermission(
                session_id=session.session_id,
                permission_id=row.permission_id,
                kind=row.kind,
                agent=session.agent,
                action=row.action,
                sequence=row.sequence,
                requested_at=row.requested_at,
                expires_at=row.expires_at,
                metadata=request_metadata(row),
            )
            for session, row in rows
        ]

    async def reply_permission(
        self, session_id: str, permission_id: str, reply: PermissionReply, *, by: str
    ) -> None:
        """Answer a permission request; "always" falls back to "once" if the agent offers nothing longer.

        Raises:
            ServerSessionNotFoundError: there is no such session.
            NotFoundError: it has no such permission.
            ConflictError: it has been answered; the extensions have the client and the answer.
            InvalidRequestError: the request offers no such reply.
        """
        session, row = await self._find(session_id, permission_id, "permission")
        try:
            result = select_option(permission_id, request_options(row), reply)
        except UnsupportedPermissionReplyError as error:
            raise InvalidRequestError(
                f"invalid request: {error}", availableReplies=error.available_replies
            ) from None
        await self._answer(session, row, result, by)

    async def reply_question(
        self, session_id: str, question_id: str, answers: Sequence[Sequence[str]], *, by: str
    ) -> None:
        """Answer a question with the chosen options of each field.

        Raises:
            NotFoundError: it has no such question, or the request is not stored any more.
            InvalidRequestError: the answers don't match the question.
            ProblemError: as of reply_permission.
        """
        session, row = await self._find(session_id, question_id, "question")
        asked = await request_envelope(self._store, row)
        if not isinstance(asked.get("method"), str):
            raise NotFoundError(f"not found: the request of question '{question_id}' is not stored any more")
        result = answer_result(asked["method"], members(asked.get("params")), answers)
        await self._answer(session, row, result, by)

    async def reject_question(self, session_id: str, question_id: str, *, by: str) -> None:
        """Answer a question on behalf of a user who declines to (see reply_permission)."""
        session, row = await self._find(session_id, question_id, "question")
        asked = await request_envelope(self._store, row)
        await self._answer(session, row, rejection_result(str(asked.get("method") or "")), by)

    async def _find(
        self, session_id: str, permission_id: str, kind: Literal["permission", "question"]
    ) -> tuple[SessionRow, PermissionRow]:
        session = await self._store.session(session_id)
        if session is None:
            raise session_not_found(session_id)
        row = await self._store.permission(session.key, permission_id)
        if row is None or row.kind != kind:
            raise NotFoundError(f"not found: session '{session_id}' has no {kind} '{permission_id}'")
        if row.answered is not None:
            raise _conflict(row)
        return session, row

    async def _answer(self, session: SessionRow, row: PermissionRow, result: dict[str, Any], by: str) -> None:
        if not await self._sessions.answer(session.session_id, row.permission_id, result, by):
            # the first answer may not be stored yet
            found = await self._store.permission(session.key, row.permission_id)
            raise _conflict(found or row)


def _conflict(row: PermissionRow) -> ConflictError:
    extensions: dict[str, Any] = {
        "answeredBy": row.answered_by,
        "answered": row.answered,
        "answeredAt": row.answered_at,
    }
    if row.answered in {"reject", "rejected"} and not row.answered_by:
        # Either an unnamed client rejected it, or it was closed at the end of its turn.
        return ConflictError(
            f"conflict: {row.kind} '{row.permission_id}' was rejected, or its turn has ended: it is not "
            "pending any more",
            **extensions,
        )
    reply = _REPLY_OF_STATUS.get(row.answered or "", row.answered)
    by = f" by '{row.answered_by}'" if row.answered_by else ""
    how = f" with '{reply}'" if reply else ""
    return ConflictError(
        f"conflict: {row.kind} '{row.permission_id}' has already been answered{by}{how}",
        **extensions,
    )


async def request_envelope(store: SessionStore, row: PermissionRow) -> dict[str, Any]:
    """Return the agent's request as received; empty if it is not stored any more."""
    events = await store.events(row.key, after=row.sequence - 1, limit=1, max_bytes=1, include_raw=True)
    if not events or events[0].sequence != row.sequence:
        return {}
    return members(members(_loads(events[0].data)).get("raw"))


def request_metadata(row: PermissionRow) -> dict[str, Any]:
    """Return the metadata of the request's event: its options, kind and paths."""
    data = members(_loads(row.metadata))
    # the row has the event's data; a permission's own metadata is a member of it
    return members(data.get("metadata")) or data


def request_options(row: PermissionRow) -> list[dict[str, Any]]:
    """Return the options of a permission request."""
    return [members(each) for each in elements(request_metadata(row).get("options"))]


def _loads(data: bytes) -> Any:
    try:
        return loads(data)
    except InvalidEnvelopeError:
        return None
