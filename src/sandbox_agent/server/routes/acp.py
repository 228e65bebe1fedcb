"""``/v1/acp``: connections to agents over HTTP and server-sent events."""

from __future__ import annotations

from contextlib import nullcontext

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.agents.environment import check_variables
from sandbox_agent.engine.feed import EVERYTHING
from sandbox_agent.engine.sse import encode_event
from sandbox_agent.errors import (
    AgentNotInstalledError,
    ConflictError,
    GoneError,
    InvalidRequestError,
    NotAcceptableError,
    ServerSessionNotFoundError,
    UnsupportedAgentError,
)
from sandbox_agent.runtime.tree_usage import TreeUsage, read_usage
from sandbox_agent.server import metrics
from sandbox_agent.server.agents.connection import UNTIMED_METHODS
from sandbox_agent.server.client_names import CLIENT_HEADER, MAX_CLIENT_NAME
from sandbox_agent.server.http.operations import (
    AGENT_ERRORS,
    MAX_IDEMPOTENCY_KEY,
    MAX_NUMBER,
    Answer,
    Operation,
    Parameter,
    accepts,
    get_header,
    integer_schema,
    read_body,
    read_client,
    read_flag,
    read_idempotency_key,
    read_json,
    read_text,
    require_json_body,
    text_schema,
)
from sandbox_agent.server.state import JsonResponse, json_response, state_of
from sandbox_agent.server.streams.viewers import EVENT_STREAM, EventStream, Viewer, on_disconnect
from sandbox_agent.wire.api import (
    AcpClientInfo,
    AcpServerInfo,
    AcpServerListResponse,
    AcpUsageInfo,
    OpenAcpRequest,
)
from sandbox_agent.wire.jsonrpc import Head, InvalidEnvelopeError, dumps, read_head

EPOCH_HEADER = "sandbox-agent-epoch"
RESPOND_ASYNC = "respond-async"
TIMEOUT_HEADER = "sandbox-agent-request-timeout"
MAX_SERVER_ID = 256
# A longer wait=N is shortened to this.
MAX_WAIT = 86_400.0

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
_PREFER = Parameter(
    "Prefer",
    "header",
    "With `respond-async`, a request is answered with 202 once the agent has received it, and the agent's "
    "response is sent in the event stream only: no long request exists that a proxy could end. With "
    "`respond-async, wait=N`, it is answered with 200 and the response if that arrives within N seconds.",
)
_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "Identifies a notification or a response. If it is sent again with the same key, the agent does not "
    "receive it twice.",
    text_schema(least=1, most=MAX_IDEMPOTENCY_KEY),
)
_HOLDER = Parameter(
    "holder",
    "query",
    "Describes the client's process, for others that ask for its place.",
    text_schema(least=1, most=MAX_CLIENT_NAME),
)
_ENVELOPE = {"$ref": "#/components/schemas/AcpEnvelope"}


def _server_id(request: Request) -> str:
    server_id: str = request.path_params["server_id"]
    if len(server_id) > MAX_SERVER_ID or not server_id.isprintable() or server_id in (".", ".."):
        raise InvalidRequestError(
            f"invalid request: a server id is at most {MAX_SERVER_ID} printable characters, not '.' or '..'"
        )
    return server_id


@Operation(
    "GET",
    "/v1/acp",
    tag="acp",
    parameters=(Parameter("usage", "query", "Add what the agents' processes use.", {"type": "boolean"}),),
    answers={200: Answer("The connections.", AcpServerListResponse)},
)
async def get_v1_acp_servers(request: Request) -> Response:
    """List live connections.

    Lists the connections whose agent runs, oldest first. Each has the clients that have used it, up to 64,
    with their open streams; one without a name stands for all clients that sent none. `idleMs` is absent
    while a client uses the connection or a turn runs.
    """
    connections = state_of(request).bridge.live()
    usages: dict[int, TreeUsage] = {}
    if read_flag(request, "usage"):
        usages = await anyio.to_thread.run_sync(read_usage, [each.pid for each in connections])
    servers = [
        AcpServerInfo(
            server_id=connection.server_id,
            agent=connection.agent,
            created_at_ms=connection.created_at_ms,
            clients=[
                AcpClientInfo(name=name or None, streams=streams)
                for name, streams in connection.usage.streams.items()
            ],
            idle_ms=None if (idle := connection.idle_seconds) is None else round(idle * 1000),
            usage=_usage_info(usages.get(connection.pid)),
        )
        for connection in connections
    ]
    return json_response(AcpServerListResponse(servers=servers))


def _usage_info(usage: TreeUsage | None) -> AcpUsageInfo | None:
    if usage is None:
        return None
    return AcpUsageInfo(
        processes=usage.processes,
        memory_bytes=usage.memory_bytes,
        cpu_ms=round(usage.cpu_seconds * 1000),
    )


@Operation(
    "POST",
    "/v1/acp/{server_id}",
    tag="acp",
    parameters=(
        _SERVER_ID,
        Parameter("agent", "query", "The agent's id. The first POST of a connection must have it."),
        _CLIENT,
        _PREFER,
        _KEY,
    ),
    request_body=_ENVELOPE,
    answers={
        200: Answer(
            "The agent's response.",
            _ENVELOPE,
            headers={"Preference-Applied": "`wait=N`, if the request had `respond-async, wait=N`."},
        ),
        202: Answer(
            "The agent has received the envelope.",
            headers={
                "Preference-Applied": "`respond-async` or `respond-async, wait=N`, if the response is in "
                "the event stream.",
                TIMEOUT_HEADER: "Seconds after which no response is expected, except to a prompt.",
            },
        ),
    },
    errors=(
        UnsupportedAgentError,
        AgentNotInstalledError,
        NotAcceptableError,
        ConflictError,
        GoneError,
        *AGENT_ERRORS,
    ),
)
async def post_v1_acp(request: Request) -> Response:
    """Send a JSON-RPC envelope.

    The first POST names the agent and starts its process. A request is answered with 200 and the agent's
    response, even if that is an error. A notification or a response is answered with 202 and no body. If the
    client disconnects, its request continues, and the response is sent in the event stream.

    A named client may send an envelope again if it does not know whether it has arrived. A request with the
    same id and the same bytes is not sent to the agent twice: the POST waits for the same response, or
    returns it. The server recognizes the newest 4,096 envelopes of a connection and keeps up to 4 MiB of
    their responses; a response that is no longer kept is answered with 410. A client must therefore not use
    an id twice under one name. Requests of unnamed clients are never merged.
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
    wait = _read_wait(request)
    applied = f"wait={wait:.0f}" if wait else ""
    # A client that disconnects has left, even if its request still runs; only a prompt may take long.
    may_last = head.method in UNTIMED_METHODS and wait is None
    with connection.usage.used(client) as end_use:
        watched = on_disconnect(request.receive, end_use) if may_last else nullcontext()
        with watched:
            key = read_idempotency_key(request)
            response = await connection.send(client, head, body, key=key, wait=wait)
    if response is not None:
        answer = JsonResponse(connection.with_stderr(response))
        answer.raw_headers += [(b"preference-applied", applied.encode())] if applied else []
        return answer
    if wait is None or not head.is_request:
        return Response(status_code=202)
    applied = f"{RESPOND_ASYNC}, {applied}" if applied else RESPOND_ASYNC
    timeout = f"{state.config.request_timeout:g}"
    return Response(status_code=202, headers={"Preference-Applied": applied, TIMEOUT_HEADER: timeout})


def _read_wait(request: Request) -> float | None:
    """Return how long the Prefer header (RFC 7240) allows to wait for the response; None without a limit."""
    preferences: dict[str, str] = {}
    for part in (get_header(request, b"prefer") or "").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        preferences.setdefault(name.strip().lower(), value.strip(' \t"'))
    if RESPOND_ASYNC not in preferences:
        return None
    seconds = preferences.get("wait", "")  # an invalid preference is ignored
    return min(float(seconds), MAX_WAIT) if seconds.isdecimal() else 0.0


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
        _HOLDER,
        Parameter(
            "attach",
            "query",
            "The name of a client whose place the caller takes: the stream has the responses to all clients, "
            "and `sent` events with what clients sent.",
            text_schema(least=1, most=MAX_CLIENT_NAME),
        ),
        Parameter(
            "take_over",
            "query",
            "Whether to take the place of a client that is still there.",
            {"type": "boolean"},
        ),
        Parameter(
            "keys",
            "query",
            "With `attach`: Idempotency-Keys, separated by commas, of envelopes that the other client may "
            "have sent.",
            text_schema(),
        ),
    ),
    answers={
        200: Answer(
            "The stream.",
            text_schema(),
            EVENT_STREAM,
            {EPOCH_HEADER: "The connection's epoch: sequences are comparable within one epoch only."},
        )
    },
    errors=(ServerSessionNotFoundError, NotAcceptableError, ConflictError),
)
async def get_v1_acp(request: Request) -> Response:
    """Stream the agent's envelopes.

    Server-sent events. A `message` event has an envelope as its data and the envelope's sequence as its id;
    the stream has every envelope since the connection was opened. A `reset` event means that the requested id
    or epoch does not belong to this connection; the stream then starts from the first envelope.

    A named client has one stream: opening another one under the same name closes the older one.

    With `attach`, a client continues where another one was lost. The stream then also has the responses to
    all other clients. What named clients sent with an Idempotency-Key is there as `sent` events, whose data
    has the `client`, the `idempotencyKey` and the `envelope`. An `attached` event comes first, with the
    `lastSequence` at this moment, and those of the `keys` whose envelopes are `unsent`: the agent has not
    received them, or has received 1,024 others since. While the other client has a stream, or had one in the
    last 10 s, the answer is 409 with its `holder`, `connected` and `goneForMs`, unless `take_over` is true or
    `holder` is the same.
    """
    if not accepts(request, EVENT_STREAM):
        raise NotAcceptableError(f"not acceptable: accept must allow {EVENT_STREAM}")
    last_event_id = get_header(request, b"last-event-id") or "0"
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 20):
        raise InvalidRequestError("invalid request: Last-Event-ID must be a positive integer")
    connection = state_of(request).bridge.get(_server_id(request))
    client, holder = read_client(request), read_text(request, "holder")
    other = read_text(request, "attach")
    if other is not None:
        if not read_flag(request, "take_over"):
            connection.clients.require_gone(other, holder)
        connection.clients.leave(other)
    feed = connection.feed
    position = feed.begin(int(last_event_id), request.query_params.get("epoch"))
    opening = _reset_event(feed.epoch, int(last_event_id)) if position.reset else b""
    if other is not None:
        keys = (read_text(request, "keys") or "").split(",")
        unsent = connection.clients.unsent(filter(None, keys))
        opening += encode_event("attached", dumps({"lastSequence": feed.last, "unsent": unsent}))
    audience = None if other is None else EVERYTHING
    viewer = Viewer(connection, position.cursor, client, audience=audience)
    return EventStream(
        viewer,
        opening=opening,
        headers=[(EPOCH_HEADER.encode(), feed.epoch.encode())],
        presence=connection.clients.reading(client, holder, viewer),
    )


@Operation(
    "PUT",
    "/v1/acp/{server_id}",
    tag="acp",
    parameters=(_SERVER_ID,),
    request_body=OpenAcpRequest,
    answers={204: Answer("The agent runs with these variables.")},
    errors=(UnsupportedAgentError, AgentNotInstalledError, ConflictError, *AGENT_ERRORS),
)
async def put_v1_acp(request: Request) -> Response:
    """Open a connection with variables.

    Starts the agent before the first POST, with variables of its own besides those that agents inherit. The
    same request again has no effect while the agent runs. If the agent has ended, a POST with `agent` starts
    it without these variables.
    """
    state, server_id = state_of(request), _server_id(request)
    body = await read_json(request, OpenAcpRequest, state.config.max_body_bytes)
    check_variables(body.env or {})
    connection = await state.bridge.open(server_id, body.agent, body.env or {})
    if connection.env != (body.env or {}):
        raise ConflictError(f"conflict: the agent of '{server_id}' runs with other variables")
    return Response(status_code=204)


@Operation(
    "DELETE",
    "/v1/acp/{server_id}",
    tag="acp",
    parameters=(
        _SERVER_ID,
        _CLIENT,
        Parameter(
            "if_unused",
            "query",
            "Whether to keep the connection while another client has a stream. The caller's streams end.",
            {"type": "boolean"},
        ),
    ),
    answers={204: Answer("The connection is closed.")},
    errors=(ConflictError,),
)
async def delete_v1_acp(request: Request) -> Response:
    """Close a connection.

    Stops the agent's process and its child processes before the response is sent. Deleting a connection that
    does not exist has no effect.
    """
    bridge, server_id = state_of(request).bridge, _server_id(request)
    connection = bridge.peek(server_id) if read_flag(request, "if_unused") else None
    if connection is not None and connection.usage.has_others(client := read_client(request)):
        connection.clients.leave(client)
        raise ConflictError(f"conflict: another client uses '{server_id}'", serverId=server_id)
    await bridge.delete(server_id)
    return Response(status_code=204)


def _reset_event(epoch: str, last_event_id: int) -> bytes:
    metrics.RESETS.add()
    data = dumps({"epoch": epoch, "lastEventId": last_event_id})
    return encode_event("reset", data, event_id=0)


OPERATIONS = (
    get_v1_acp_servers,
    post_v1_acp,
    get_v1_acp,
    put_v1_acp,
    delete_v1_acp,
)
