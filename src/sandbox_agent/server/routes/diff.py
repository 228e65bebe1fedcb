"""``/v1/fs/diff``: what a session has changed in its workspace."""

from __future__ import annotations

from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import (
    ConflictError,
    InvalidRequestError,
    PermissionDeniedError,
    PersistError,
    RequestTimeoutError,
    ServerSessionNotFoundError,
    StoreUnavailableError,
)
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.server.errors import session_not_found
from sandbox_agent.server.http.dispatch import STORE_SECONDS
from sandbox_agent.server.http.operations import Answer, Operation, Parameter, read_text, text_schema
from sandbox_agent.server.state import ServerState, state_of

PATCH: Final = "text/x-diff"
TRUNCATED_HEADER: Final = "sandbox-agent-truncated"


@Operation(
    "GET",
    "/v1/fs/diff",
    tag="files",
    parameters=(
        Parameter("session", "query", "The id of the session.", text_schema(least=1), required=True),
        Parameter("agent", "query", "With it, `session` is the id that this agent has given the session."),
    ),
    answers={
        200: Answer(
            "The changes as a unified diff; empty if there are none.",
            {"type": "string", "format": "binary"},
            PATCH,
            {TRUNCATED_HEADER: "`true` if the diff is larger than 32 MiB: the last files are left out."},
        )
    },
    errors=(
        InvalidRequestError,
        ServerSessionNotFoundError,
        ConflictError,
        PermissionDeniedError,
        RequestTimeoutError,
        StoreUnavailableError,
    ),
)
async def get_v1_fs_diff(request: Request) -> Response:
    """Compare the workspace of a session with its state when the session was created.

    The workspace is the Git repository that has the session's folder. Files that are not committed are
    included, except those that Git ignores, that are larger than 32 MiB or that are in submodules. The answer
    is 409 if the workspace is not in a Git repository, or if its state was not recorded.
    """
    name, agent = read_text(request, "session"), read_text(request, "agent")
    if name is None:
        raise InvalidRequestError("invalid request: query parameter 'session' is missing")
    state = state_of(request)
    try:
        with anyio.fail_after(STORE_SECONDS):
            row = await _find(state, name, agent)
            if row is None:  # the newest sessions may not be stored yet
                await state.recorder.flush()
                row = await _find(state, name, agent)
    except TimeoutError:
        raise PersistError(f"the store has not answered within {STORE_SECONDS:g} s") from None
    if row is None:
        raise session_not_found(name)
    found = await state.baselines.compare(row)
    headers = {TRUNCATED_HEADER: "true"} if found.truncated else {}
    return Response(found.patch, headers=headers, media_type=PATCH)


async def _find(state: ServerState, name: str, agent: str | None) -> SessionRow | None:
    return await (state.store.session(name) if agent is None else state.store.native_session(agent, name))


OPERATIONS = (get_v1_fs_diff,)
