"""``/``, ``/v1/health``, ``/v1/openapi.json``: what the server says of itself."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.server.http.operations import Answer, Operation
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.server.store import trouble_of
from sandbox_agent.wire.api import HealthResponse, RootResponse

__all__ = ["OPERATIONS"]

DOCS_URL = "https://sandboxagent.dev"


async def root(_: Request) -> Response:
    """Say who answers."""
    return json_response(RootResponse(name="Sandbox Agent", docs=DOCS_URL))


async def health(request: Request) -> Response:
    """Say that the server answers, and whether its store does."""
    state = state_of(request)
    reason = state.recorder.degraded or state.bridge.spiller.degraded or trouble_of(state.store)
    store = None if reason is None else "degraded"
    return json_response(HealthResponse(status="ok", store=store, reason=reason))


async def openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    return json_response(state_of(request).openapi)


OPERATIONS = (
    Operation(
        method="GET",
        path="/",
        endpoint=root,
        operation_id="get_root",
        summary="Who answers",
        description="The server's name and where its documentation is.",
        tag="meta",
        answers={200: Answer("The name.", RootResponse)},
    ),
    Operation(
        method="GET",
        path="/v1/health",
        endpoint=health,
        operation_id="get_v1_health",
        summary="Health",
        description="`status` is ok while the server answers; `store` says `degraded`, with the reason, "
        "while the store refuses events.",
        tag="meta",
        answers={200: Answer("It answers.", HealthResponse)},
    ),
    Operation(
        method="GET",
        path="/v1/openapi.json",
        endpoint=openapi,
        operation_id="get_v1_openapi",
        summary="This document",
        description="The OpenAPI document, generated from the code.",
        tag="meta",
        answers={200: Answer("The document.", {"type": "object"})},
    ),
)
