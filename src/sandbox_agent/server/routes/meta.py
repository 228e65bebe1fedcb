"""``/``, ``/v1/health``, ``/v1/openapi.json``: information about the server itself."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.server.http.operations import Answer, Operation
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.api import HealthResponse, RootResponse

_OPENAPI_PATH = "/v1/openapi.json"


async def get_root(request: Request) -> Response:
    """Return the server's name and the address of its documentation."""
    docs = str(request.base_url).rstrip("/") + _OPENAPI_PATH
    return json_response(RootResponse(name="Sandbox Agent", docs=docs))


async def get_health(request: Request) -> Response:
    """Return whether the server and its store work."""
    state = state_of(request)
    reason = state.recorder.degraded or state.bridge.spiller.degraded or state.store.trouble
    store = None if reason is None else "degraded"
    return json_response(HealthResponse(status="ok", store=store, reason=reason))


async def get_openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    return json_response(state_of(request).openapi)


OPERATIONS = (
    Operation(
        method="GET",
        path="/",
        endpoint=get_root,
        operation_id="get_root",
        summary="Name and documentation",
        description="Returns the server's name and the address of its API documentation.",
        tag="meta",
        answers={200: Answer("The name and the address.", RootResponse)},
    ),
    Operation(
        method="GET",
        path="/v1/health",
        endpoint=get_health,
        operation_id="get_v1_health",
        summary="Health",
        description=(
            "`status` is `ok` while the server answers. While the store refuses events, `store` is "
            "`degraded` and `reason` is the cause."
        ),
        tag="meta",
        answers={200: Answer("The server answers.", HealthResponse)},
    ),
    Operation(
        method="GET",
        path=_OPENAPI_PATH,
        endpoint=get_openapi,
        operation_id="get_v1_openapi",
        summary="This document",
        description="Returns the OpenAPI document, which is generated from the code.",
        tag="meta",
        answers={200: Answer("The document.", {"type": "object"})},
    ),
)
