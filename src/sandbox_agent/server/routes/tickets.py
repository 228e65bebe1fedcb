"""``/v1/tickets``: passes for streams, for clients that cannot send the token in a header."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.server.http.operations import Answer, Operation, read_json
from sandbox_agent.server.http.root_path import root_path_of
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.server.tickets import TICKET_SECONDS
from sandbox_agent.wire.api import TicketRequest, TicketResponse
from sandbox_agent.wire.universal import event_time


@Operation(
    "POST",
    "/v1/tickets",
    tag="meta",
    request_body=TicketRequest,
    answers={200: Answer("The ticket.", TicketResponse)},
    errors=(InvalidRequestError,),
)
async def post_v1_tickets(request: Request) -> Response:
    """Create a ticket for a stream.

    A browser's EventSource and WebSocket cannot send the token. They append `ticket=TICKET` to the query of a
    stream instead, which then needs no `Authorization` header. A ticket is for GET requests of its path with
    its query, by clients without a name. With the scope `events` it is valid for 60 seconds, while its stream
    is open, and 60 seconds after that, so that an EventSource can reconnect. With the scope `terminal` it is
    used once. Tickets are lost when the server restarts.
    """
    state = state_of(request)
    wanted = await read_json(request, TicketRequest, state.config.max_body_bytes)
    path, root = wanted.path, root_path_of(request.scope)
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    ticket = state.tickets.issue(wanted.scope, path)
    expires_at = event_time(int((time.time() + TICKET_SECONDS) * 1000))
    response = json_response(TicketResponse(ticket=ticket, expires_at=expires_at))
    response.headers["cache-control"] = "no-store"
    return response


OPERATIONS = (post_v1_tickets,)
