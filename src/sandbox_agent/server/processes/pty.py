"""Children with a terminal."""

from __future__ import annotations

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.server.processes.child import Child, Spawner
from sandbox_agent.wire.processes import ProcessCreateRequest


async def spawn_pty(spawner: Spawner, request: ProcessCreateRequest) -> Child:
    """Start a command with a terminal, whose output is the stream "pty".

    Args:
        spawner: starts it.
        request: the command.

    Raises:
        InvalidRequestError: this server has no terminals.
        StreamError: it can't be started.
    """
    del spawner, request
    raise InvalidRequestError("invalid request: tty: this server has no terminals: create it without tty")
