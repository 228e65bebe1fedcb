"""``/v1/acp``: connections to agents over HTTP and server-sent events."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.engine.sse import encode_event
from sandbox_agent.errors import (
    AgentNotInstalledError,
    ConflictError,
    InvalidRequestError,
    NotAcceptableError,
    ServerSessionNotFoundError,
    UnsupportedAgentError,
)
from sandbox_agent.server.client_names import CLIENT_HEADER, MAX_CLIENT_NAME
from sandbox_agent.server.http.operations import (
    AGENT_ERRORS,
    MAX_NUMBER,
    Answer,
    Operation,
    Parameter,
    accepts,
    get_header,
    integer_schema,
    read_body,
    read_client,
    read_text,
    require_json_body,
    text_schema,
)
from sandbox_agent.server.state import JsonResponse, json_response, state_of
from sandbox_agent.server.streams.viewers import EVENT_STREAM, EventStream, Viewer
from sandbox_agent.wire.api import AcpServerInfo, AcpServerListResponse
from sandbox_agent.wire.jsonrpc import Head, InvalidEnvelopeError, dumps, read_head

EPOCH_HEADER = "sandbox-agent-epoch"
MAX_SERVER_ID = 256

_SERVER_ID = Parameter(
    "server_id",
    "path",
    "The connection's id, chosen by the client.",
    text_schema(least=1, most=MAX_SERVER_ID),
)
_CLIENT = Parameter(
    CLIENT_HEADER,
    "header",
    "The client's name. Responses to the requests of a named client go to its own streams only.",
    text_schema(most=MAX_CLIENT_NAME),
)
_ENVELOPE = {"$ref": "#/components/schemas/AcpEnvelope"}


def _server_id(request: Request) -> str:
    server_id: str = request.path_params["server_id"]
    if len(server_id) > MAX_SERVER_ID or not server_id.isprintable():
        raise InvalidRequestError(
            f"invalid request: a server id is at most {MAX_SERVER_ID} printable characters"
        )
    return server_id


@Operation(
    "GET",
    "/v1/acp",
    tag="acp",
    answers={200: Answer("The connections.", AcpServerListResponse)},
)
async def get_v1_acp_servers(request: Request) -> Response:
    """List live connections.

    Lists the connections whose agent runs, oldest first.
    """
    servers = [
        AcpServerInfo(
            server_id=connection.server_id, agent=connection.agent, created_at_ms=connection.created_at_ms
        )
        for connection in state_of(request).bridge.live()
    ]
    return json_response(AcpServerListResponse(servers=servers))


@Operation(
    "POST",
    "/v1/acp/{server_id}",
    tag="acp",
    parameters=(
        _SERVER_ID,
        Parameter("agent", "query", "The agent's id. The first POST of a connection must have it."),
        _CLIENT,
    ),
    request_body=_ENVELOPE,
    answers={
        200: Answer("The agent's response.", _ENVELOPE),
        202: Answer("The envelope was accepted."),
    },
    errors=(
        UnsupportedAgentError,
        AgentNotInstalledError,
        NotAcceptableError,
        ConflictError,
        *AGENT_ERRORS,
    ),
)
async def post_v1_acp(request: Request) -> Response:
    """Send a JSON-RPC envelope.

    The first POST names the agent and starts its process. A request is answered with 200 and the agent's
    response, even if that is an error. A notification or a response is answered with 202 and no body. If the
    client disconnects, its request continues, and the response is sent in the event stream.
    """
    server_id = _server_id(request)
    require_json_body(request)
    if not accepts(request, "application/json"):
        raise NotAcceptableError("not acceptable: accept must allow application/json")
    client = read_client(request)
    state = state_of(request)
    body = await read_body(request, state.config.max_body_bytes)
    head = _read_head(body)
    connection = await state.bridge.open(server_id, read_text(request, "agent"))
    response = await connection.send(client, head, body)
    if response is None:
        return Response(status_code=202)
    return JsonResponse(connection.with_stderr(response))


def _read_head(body: bytes) -> Head:
    """Read the envelope's head; an invalid envelope starts no agent."""
    try:
        return read_head(body)
    except InvalidEnvelopeError as error:
        raise InvalidRequestError(f"invalid request: the body is not a JSON-RPC object: {error}") from None


@Operation(
    "GET",
    "/v1/acp/{server_id}",
    tag="acp",
    parameters=(
        _SERVER_ID,
        Parameter(
            "Last-Event-ID",
            "header",
            "The last sequence that the client received; the stream continues after it.",
            integer_schema(most=MAX_NUMBER),
        ),
        Parameter("epoch", "query", "The Sandbox-Agent-Epoch to which Last-Event-ID belongs."),
        _CLIENT,
    ),
    answers={
        200: Answer(
            "The stream.",
            text_schema(),
            EVENT_STREAM,
            {EPOCH_HEADER: "The connection's epoch: sequences are comparable within one epoch only."},
        )
    },
    errors=(ServerSessionNotFoundError, NotAcceptableError),
)
async def get_v1_acp(request: Request) -> Response:
    """Stream the agent's envelopes.

    Server-sent events. A `message` event has an envelope as its data and the envelope's sequence as its id;
    the stream has every envelope since the connection was opened. A `reset` event means that the requested id
    or epoch does not belong to this connection; the stream then starts from the first envelope.
    """
    if not accepts(request, EVENT_STREAM):
        raise NotAcceptableError(f"not acceptable: accept must allow {EVENT_STREAM}")
    last_event_id = get_header(request, b"last-event-id") or "0"
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 20):
        raise InvalidRequestError("invalid request: Last-Event-ID must be a positive integer")
    connection = state_of(request).bridge.get(_server_id(request))
    epoch = connection.feed.epoch
    position = connection.feed.begin(int(last_event_id), request.query_params.get("epoch"))
    return EventStream(
        Viewer(connection, position.cursor, read_client(request)),
        opening=_reset_event(epoch, int(last_event_id)) if position.reset else b"",
        headers=[(EPOCH_HEADER.encode(), epoch.encode())],
    )


@Operation(
    "DELETE",
    "/v1/acp/{server_id}",
    tag="acp",
    parameters=(_SERVER_ID,),
    answers={204: Answer("The connection is closed.")},
)
async def delete_v1_acp(request: Request) -> Response:
    """Close a connection.

    Stops the agent's process and its child processes before the response is sent. Deleting a connection that
    does not exist has no effect.
    """
    await state_of(request).bridge.delete(_server_id(request))
    return Response(status_code=204)


def _reset_event(epoch: str, last_event_id: int) -> bytes:
    data = dumps({"epoch": epoch, "lastEventId": last_event_id})
    return encode_event("reset", data, event_id=0)


OPERATIONS = (
    get_v1_acp_servers,
    post_v1_acp,
    get_v1_acp,
    delete_v1_acp,
)
