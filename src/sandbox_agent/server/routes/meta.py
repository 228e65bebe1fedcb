"""``/``, ``/v1/health``, ``/v1/openapi.json``: information about the server itself."""

from __future__ import annotations

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.server.errors import without_path
from sandbox_agent.server.http.operations import Answer, Operation
from sandbox_agent.server.http.root_path import root_path_of
from sandbox_agent.server.state import degradation, json_response, state_of
from sandbox_agent.wire.api import HealthResponse, RootResponse
from sandbox_agent.wire.jsonrpc import dumps, loads, members

_OPENAPI_PATH = "/v1/openapi.json"


@Operation(
    "GET",
    "/",
    tag="meta",
    answers={200: Answer("The name and the address.", RootResponse)},
)
async def get_root(request: Request) -> Response:
    """Name and documentation.

    Returns the server's name and the address of its API documentation.
    """
    docs = request.base_url.replace(path=root_path_of(request.scope) + _OPENAPI_PATH)
    return json_response(RootResponse(name="Sandbox Agent", docs=str(docs)))


@Operation(
    "GET",
    "/v1/health",
    tag="meta",
    answers={200: Answer("The server answers.", HealthResponse)},
)
async def get_v1_health(request: Request) -> Response:
    """Health.

    `status` is `ok` while the server answers. While the store refuses events, `store` is `degraded` and
    `reason` is the cause.
    """
    reason = degradation(state_of(request))
    if reason is None:
        return json_response(HealthResponse(status="ok"))
    return json_response(HealthResponse(status="ok", store="degraded", reason=without_path(reason)))


@Operation(
    "GET",
    _OPENAPI_PATH,
    tag="meta",
    answers={200: Answer("The document.", {"type": "object"})},
)
async def get_v1_openapi(request: Request) -> Response:
    """This document.

    Returns the OpenAPI document, which is generated from the code.
    """
    document: bytes = await run_sync(state_of(request).openapi)
    root = root_path_of(request.scope)
    if root:
        document = dumps({**members(loads(document)), "servers": [{"url": root}]})
    return json_response(document)


OPERATIONS = (
    get_root,
    get_v1_health,
    get_v1_openapi,
)
