"""Helpers of the session routes: names in paths, client names, bodies of responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.store import SessionRow, TurnRow
from sandbox_agent.server.client_names import CLIENT_HEADER, MAX_CLIENT_NAME
from sandbox_agent.server.errors import session_not_found
from sandbox_agent.server.http.operations import Parameter, read_flag, text_schema
from sandbox_agent.server.permissions.policies import stored_request
from sandbox_agent.server.recorder.session_metadata import read_usage
from sandbox_agent.server.state import state_of
from sandbox_agent.wire.sessions import SessionInfo, TurnInfo

MAX_NAME = 256

NAME = text_schema(least=1, most=MAX_NAME)
SESSION_ID = Parameter("session_id", "path", "The session's id, chosen by the client.", NAME)
CLIENT = Parameter(
    CLIENT_HEADER,
    "header",
    "The client's name, which is logged with its answers.",
    text_schema(most=MAX_CLIENT_NAME),
)
_BOOLEAN: Mapping[str, Any] = {"type": "boolean", "nullable": True}
INCLUDE_RAW = (
    Parameter(
        "include_raw", "query", "Add `raw`, the JSON-RPC envelope from which the event was made.", _BOOLEAN
    ),
    Parameter("includeRaw", "query", "The same as `include_raw`.", _BOOLEAN),
)


def path_name(request: Request, parameter: str) -> str:
    """Return a name from the path.

    Raises:
        InvalidRequestError: it is too long, has characters that are not printable, or is a dot segment.
    """
    name: str = request.path_params[parameter]
    # Clients and proxies remove dot segments from paths, even encoded ones.
    if not name or len(name) > MAX_NAME or not name.isprintable() or name in (".", ".."):
        raise InvalidRequestError(
            f"invalid request: {parameter} must be 1 to {MAX_NAME} printable characters, not '.' or '..'"
        )
    return name


def session_id_of(request: Request) -> str:
    """Return the session id in the path."""
    return path_name(request, "session_id")


def include_raw(request: Request) -> bool:
    """Return whether the client requests raw envelopes; 0.1 has two spellings."""
    return read_flag(request, "include_raw") or read_flag(request, "includeRaw")


async def find_session(request: Request) -> SessionRow:
    """Return the stored session whose id is in the path.

    Raises:
        ServerSessionNotFoundError: the store has no such session.
    """
    session_id = session_id_of(request)
    row = await state_of(request).store.session(session_id)
    if row is None:
        raise session_not_found(session_id)
    return row


def session_info(row: SessionRow, turns: list[TurnRow] | None = None) -> SessionInfo:
    """Convert a stored session to its body in responses."""
    request = None if turns is None else stored_request(row)
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
        usage=read_usage(row.usage),
        env=None if request is None or not request.env else list(request.env),
        turns=None if turns is None else [turn_info(turn) for turn in turns],
    )


def turn_info(row: TurnRow) -> TurnInfo:
    """Convert a stored turn to its body in responses."""
    return TurnInfo(
        turn_id=row.turn_id,
        state=row.state,  # pyright: ignore[reportArgumentType] - the store keeps what the recorder wrote
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        stop_reason=row.stop_reason,
        error=row.error,
        idempotency_key=row.idempotency_key,
        usage=read_usage(row.usage),
    )
