"""``/v1/fs/watch``: what changes in a folder, as a stream."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import (
    InvalidRequestError,
    NotAcceptableError,
    NotFoundError,
    PermissionDeniedError,
    StreamError,
)
from sandbox_agent.server.http.operations import (
    Answer,
    Operation,
    Parameter,
    accepts,
    get_header,
    read_client,
    read_flag,
    read_text,
    text_schema,
)
from sandbox_agent.server.routes.files import FOLDER
from sandbox_agent.server.state import state_of
from sandbox_agent.server.streams.viewers import EVENT_STREAM, EventStream, Viewer


@Operation(
    "GET",
    "/v1/fs/watch",
    tag="files",
    parameters=(
        FOLDER,
        Parameter(
            "recursive",
            "query",
            "Whether to watch the folders in the folder, too (default true).",
            {"type": "boolean"},
        ),
        Parameter("Last-Event-ID", "header", "The id of the last event that the client received."),
    ),
    answers={200: Answer("The stream.", text_schema(), EVENT_STREAM)},
    errors=(InvalidRequestError, PermissionDeniedError, NotFoundError, NotAcceptableError, StreamError),
)
async def get_v1_fs_watch(request: Request) -> Response:
    """Stream the changes in a folder. Links are not followed.

    The event `ready` comes first: every change after it is in an event `changes`, in batches. An event `gap`
    means that there were changes which are not known: list the folder again. `end` comes last, when the
    folder was deleted or moved, or can't be watched any more; its `detail` says why. A client that reconnects
    with `Last-Event-ID` receives what it has missed, or a `gap`.
    """
    if not accepts(request, EVENT_STREAM):
        raise NotAcceptableError(f"not acceptable: Accept must allow {EVENT_STREAM}")
    recursive = "recursive" not in request.query_params or read_flag(request, "recursive")
    watcher = await state_of(request).watchers.get(read_text(request, "path") or "", recursive=recursive)
    cursor, opening = watcher.position(get_header(request, b"last-event-id") or None)
    return EventStream(Viewer(watcher, cursor, read_client(request)), opening=opening)


OPERATIONS = (get_v1_fs_watch,)
