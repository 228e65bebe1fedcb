"""What the session routes share: names in paths, clients, bodies of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.store.rows import SessionRow, TurnRow
from sandbox_agent.server.client_names import CLIENT_HEADER, CLIENT_HEADER_BYTES, check_client_name
from sandbox_agent.server.errors import session_not_found
from sandbox_agent.server.http.operations import Parameter, flag, header
from sandbox_agent.server.state import state_of
from sandbox_agent.wire.sessions import SessionInfo, TurnInfo, UsageInfo

__all__ = [
    "CLIENT",
    "EVENT_STREAM_SCHEMA",
    "INCLUDE_RAW",
    "SESSION_ID",
    "client_of",
    "found_row",
    "include_raw",
    "name_in_path",
    "session_id_of",
    "session_info",
    "turn_info",
]

MAX_NAME = 256
_usage = msgspec.json.Decoder(UsageInfo)

SESSION_ID = Parameter("session_id", "path", "The client's own name for the session.")
CLIENT = Parameter(CLIENT_HEADER, "header", "Names the client: answers are logged as given by it.")
_BOOLEAN: Mapping[str, Any] = {"type": "boolean", "nullable": True}
INCLUDE_RAW = (
    Parameter("include_raw", "query", "Add `raw`: the envelope that the agent sent or was sent.", _BOOLEAN),
    Parameter("includeRaw", "query", "The same.", _BOOLEAN),
)
EVENT_STREAM_SCHEMA: Mapping[str, Any] = {"type": "string"}


def name_in_path(request: Request, parameter: str) -> str:
    """Return a name out of the path.

    Raises:
        InvalidRequestError: it is too long, or can't be printed.
    """
    name: str = request.path_params[parameter]
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidRequestError(
            f"invalid request: {parameter} must be 1 to {MAX_NAME} printable characters"
        )
    return name


def session_id_of(request: Request) -> str:
    """Return the session that the path names."""
    return name_in_path(request, "session_id")


def client_of(request: Request) -> str:
    """Return the client's name, or UNNAMED.

    Raises:
        InvalidRequestError: it is too long or reserved for the server.
    """
    return check_client_name(header(request, CLIENT_HEADER_BYTES))


def include_raw(request: Request) -> bool:
    """Return whether the envelopes are asked for; both spellings of 0.1 count."""
    return flag(request, "include_raw") or flag(request, "includeRaw")


async def found_row(request: Request) -> SessionRow:
    """Return the stored session that the path names.

    Raises:
        ServerSessionNotFoundError: there is none.
    """
    session_id = session_id_of(request)
    row = await state_of(request).store.session(session_id)
    if row is None:
        raise session_not_found(session_id)
    return row


def session_info(row: SessionRow, turns: list[TurnRow] | None = None) -> SessionInfo:
    """Return a session as clients see it."""
    return SessionInfo(
        session_id=row.session_id,
        agent=row.agent,
        agent_mode=row.agent_mode,
        permission_mode=row.permission_mode,
        ended=row.ended,
        event_count=row.last_sequence,
        created_at=row.created_at,
        updated_at=row.updated_at,
        directory=row.directory,
        model=row.model,
        native_session_id=row.native_session_id,
        title=row.title,
        variant=row.variant,
        managed=row.managed,
        server_id=row.server_id,
        first_sequence=row.first_sequence if row.first_sequence > 1 else None,
        usage=_usage_info(row.usage),
        turns=None if turns is None else [turn_info(turn) for turn in turns],
    )


def turn_info(row: TurnRow) -> TurnInfo:
    """Return a turn as clients see it."""
    return TurnInfo(
        turn_id=row.turn_id,
        state=row.state,  # pyright: ignore[reportArgumentType] - the store keeps what the recorder wrote
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        stop_reason=row.stop_reason,
        error=row.error,
        idempotency_key=row.idempotency_key,
        usage=_usage_info(row.usage),
    )


def _usage_info(data: bytes | None) -> UsageInfo | None:
    if data is None:
        return None
    try:
        return _usage.decode(data)
    except msgspec.DecodeError:  # written by a version that this one does not know
        return None
