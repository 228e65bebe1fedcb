"""The state that routes share, and JSON responses."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sandbox_agent.persist.store import SessionStore
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.installations import Installations
from sandbox_agent.server.agents.metering import Metering
from sandbox_agent.server.agents.registry import AgentRegistry
from sandbox_agent.server.config import ServerConfig
from sandbox_agent.server.configuration.files import ConfigFiles
from sandbox_agent.server.files.baselines import Baselines
from sandbox_agent.server.files.tree import FileTree
from sandbox_agent.server.files.watchers import Watchers
from sandbox_agent.server.permissions.automatic import Watcher
from sandbox_agent.server.permissions.inbox import Inbox
from sandbox_agent.server.processes.registry import Processes
from sandbox_agent.server.recorder.recorder import Recorder
from sandbox_agent.server.sessions.service import Sessions
from sandbox_agent.server.tickets import Tickets


@dataclass(frozen=True, slots=True)
class ServerState:
    """The parts of a running server.

    Attributes:
        openapi: returns its OpenAPI document as JSON.
        connections: the open connections.
    """

    config: ServerConfig
    bridge: Bridge
    agents: AgentRegistry
    openapi: Callable[[], bytes]
    recorder: Recorder
    store: SessionStore
    sessions: Sessions
    inbox: Inbox
    automatic: Watcher
    installations: Installations
    tickets: Tickets
    files: FileTree
    watchers: Watchers
    baselines: Baselines
    processes: Processes
    configuration: ConfigFiles
    metering: Metering
    connections: Sized


class JsonResponse(Response):
    """A response whose body is JSON already."""

    def __init__(self, content: bytes, status: int = 200) -> None:
        self.status_code = status
        self.body = content
        self.background: None = None
        self.raw_headers: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


def degradation(state: ServerState) -> str | None:
    """Return why the store refuses events, in one line; None while it works."""
    return state.recorder.degraded or state.bridge.spiller.degraded or state.store.trouble


def state_of(request: Request) -> ServerState:
    """Return the state of the server that handles the request."""
    state: ServerState = request.scope["server_state"]
    return state


def json_response(body: Any, status: int = 200) -> Response:
    """Return a response with a msgspec struct, a dict or bytes of JSON as its body."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return JsonResponse(content, status)
