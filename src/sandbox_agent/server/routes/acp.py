"""``/v1/acp``: agents over HTTP and server-sent events."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.engine.sse import encode_event
from sandbox_agent.errors import (
    AgentNotInstalledError,
    AgentProcessExitedError,
    ConflictError,
    InvalidRequestError,
    NotAcceptableError,
    PayloadTooLargeError,
    RequestTimeoutError,
    ServerSessionNotFoundError,
    StreamError,
    UnsupportedAgentError,
    UnsupportedMediaTypeError,
)
from sandbox_agent.server.client_names import CLIENT_HEADER, CLIENT_HEADER_BYTES, check_client_name
from sandbox_agent.server.http.operations import (
    Answer,
    Operation,
    Parameter,
    accepts,
    header,
    read_body,
    require_json,
    text,
)
from sandbox_agent.server.state import JsonResponse, json_response, state_of
from sandbox_agent.server.streams.response import EventStream
from sandbox_agent.server.streams.viewers import Viewer
from sandbox_agent.wire.api import AcpServerInfo, AcpServerListResponse
from sandbox_agent.wire.jsonrpc import Head, InvalidEnvelopeError, dumps, read_head

__all__ = ["EPOCH_HEADER", "OPERATIONS"]

EPOCH_HEADER = "sandbox-agent-epoch"
MAX_SERVER_ID = 256
# Sequences are contiguous from 1: nothing beyond this has ever been sent.
MAX_EVENT_ID = 2**63 - 1


def _server_id(request: Request) -> str:
    server_id: str = request.path_params["server_id"]
    if len(server_id) > MAX_SERVER_ID or not server_id.isprintable():
        raise InvalidRequestError(
            f"invalid request: a server id is at most {MAX_SERVER_ID} printable characters"
        )
    return server_id


def _client(request: Request) -> str:
    return check_client_name(header(request, CLIENT_HEADER_BYTES))


async def list_servers(request: Request) -> Response:
    """List the live connections."""
    servers = [
        AcpServerInfo(
            server_id=connection.server_id, agent=connection.agent, created_at_ms=connection.created_at_ms
        )
        for connection in state_of(request).bridge.live()
    ]
    return json_response(AcpServerListResponse(servers=servers))


async def post_envelope(request: Request) -> Response:
    """Send an envelope; the first one names the agent and starts it."""
    server_id = _server_id(request)
    media_type = (header(request, b"content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError("unsupported media type: content-type must be application/json")
    require_json(request)
    client = _client(request)
    state = state_of(request)
    body = await read_body(request, state.config.max_body_bytes)
    head = _head(body)
    connection = await state.bridge.open(server_id, text(request, "agent"))
    response = await connection.send(client, head, body)
    if response is None:
        return Response(status_code=202)
    return JsonResponse(connection.with_stderr(response))


def _head(body: bytes) -> Head:
    """Read the envelope's head, before an agent is started for it."""
    try:
        return read_head(body)
    except InvalidEnvelopeError as error:
        raise InvalidRequestError(f"invalid request: the body is no JSON-RPC object: {error}") from None


async def stream_events(request: Request) -> Response:
    """Stream what the agent sends."""
    if not accepts(request, "text/event-stream"):
        raise NotAcceptableError("not acceptable: accept must allow text/event-stream")
    last_event_id = header(request, b"last-event-id") or "0"
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 20):
        raise InvalidRequestError("invalid request: Last-Event-ID must be a positive integer")
    connection = state_of(request).bridge.get(_server_id(request))
    epoch = connection.feed.epoch
    position = connection.feed.begin(int(last_event_id), request.query_params.get("epoch"))
    return EventStream(
        Viewer(connection, position.cursor, _client(request)),
        opening=_reset(epoch, int(last_event_id)) if position.reset else b"",
        headers=[(EPOCH_HEADER.encode(), epoch.encode())],
    )


async def delete_server(request: Request) -> Response:
    """End a connection and its agent."""
    await state_of(request).bridge.delete(_server_id(request))
    return Response(status_code=204)


def _reset(epoch: str, last_event_id: int) -> bytes:
    data = dumps({"epoch": epoch, "lastEventId": last_event_id})
    return encode_event("reset", data, event_id=0)


_SERVER_ID = Parameter("server_id", "path", "The client's own name for the connection.")
_CLIENT = Parameter(
    CLIENT_HEADER,
    "header",
    "Names the client: answers to its requests go to its streams only.",
)
_ENVELOPE = {"$ref": "#/components/schemas/AcpEnvelope"}

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/acp",
        endpoint=list_servers,
        operation_id="get_v1_acp_servers",
        summary="List live connections",
        description="Connections whose agent runs, oldest first.",
        tag="acp",
        answers={200: Answer("The connections.", AcpServerListResponse)},
    ),
    Operation(
        method="POST",
        path="/v1/acp/{server_id}",
        endpoint=post_envelope,
        operation_id="post_v1_acp",
        summary="Send a JSON-RPC envelope",
        description=(
            "The first POST names the agent and starts its process. A request answers 200 with the agent's "
            "response, errors included; a notification or a response answers 202 without a body. A client "
            "that goes away leaves its request running: the answer is in the event stream."
        ),
        tag="acp",
        parameters=(
            _SERVER_ID,
            Parameter("agent", "query", "The agent; due on the first POST of a server id."),
            _CLIENT,
        ),
        request_body=_ENVELOPE,
        answers={200: Answer("The agent's response.", _ENVELOPE), 202: Answer("Taken.")},
        errors=(
            InvalidRequestError,
            UnsupportedAgentError,
            AgentNotInstalledError,
            NotAcceptableError,
            ConflictError,
            PayloadTooLargeError,
            UnsupportedMediaTypeError,
            AgentProcessExitedError,
            StreamError,
            RequestTimeoutError,
        ),
    ),
    Operation(
        method="GET",
        path="/v1/acp/{server_id}",
        endpoint=stream_events,
        operation_id="get_v1_acp",
        summary="Stream the agent's envelopes",
        description=(
            "Server-sent events: `message` with the envelope as data and its sequence as id, every one "
            "since the connection began. `reset` says that the id or epoch asked for is not of this "
            "connection's feed; the stream then goes on from its beginning."
        ),
        tag="acp",
        parameters=(
            _SERVER_ID,
            Parameter(
                "Last-Event-ID",
                "header",
                "The last sequence that the client has; the stream goes on behind it.",
                {"type": "integer", "format": "int64", "minimum": 0, "maximum": MAX_EVENT_ID},
            ),
            Parameter("epoch", "query", "The Sandbox-Agent-Epoch that the id belongs to."),
            _CLIENT,
        ),
        answers={200: Answer("The stream.", {"type": "string"}, "text/event-stream")},
        errors=(InvalidRequestError, ServerSessionNotFoundError, NotAcceptableError),
    ),
    Operation(
        method="DELETE",
        path="/v1/acp/{server_id}",
        endpoint=delete_server,
        operation_id="delete_v1_acp",
        summary="End a connection",
        description="The agent's process tree is gone when this answers; nothing happens where none is.",
        tag="acp",
        parameters=(_SERVER_ID,),
        answers={204: Answer("It is gone.")},
        errors=(InvalidRequestError,),
    ),
)
