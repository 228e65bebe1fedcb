"""What to do about an agent's error, in the events that report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sandbox_agent.agents.info import credential_variables
from sandbox_agent.engine.handshake import credentials_hint
from sandbox_agent.errors import AcpRpcError
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.universal import ErrorData, TurnEventData, UniversalEvent

_AUTH_REQUIRED = str(AcpRpcError.AUTH_REQUIRED)


def with_hints(events: Sequence[UniversalEvent], agent: str) -> Sequence[UniversalEvent]:
    """Return the events; an error that says that the agent has no credentials names their variables."""
    if not any(event.type in ("error", "turn.ended") for event in events):
        return events
    return [_with_hint(event, agent) for event in events]


def _with_hint(event: UniversalEvent, agent: str) -> UniversalEvent:
    data = event.data
    if isinstance(data, ErrorData) and data.code == _AUTH_REQUIRED:
        changed: Any = msgspec.structs.replace(data, message=_hinted(data.message, agent))
    elif isinstance(data, TurnEventData) and (error := _auth_error(data)):
        error = {**error, "message": _hinted(str(error.get("message")), agent)}
        changed = msgspec.structs.replace(data, metadata={**members(data.metadata), "error": error})
    else:
        return event
    return msgspec.structs.replace(event, data=changed)


def _auth_error(data: TurnEventData) -> dict[str, Any]:
    error = members(members(data.metadata).get("error"))
    return error if error.get("code") == _AUTH_REQUIRED else {}


def _hinted(message: str, agent: str) -> str:
    hint = credentials_hint(credential_variables(agent))
    return f"{message}: {hint}" if hint else message
