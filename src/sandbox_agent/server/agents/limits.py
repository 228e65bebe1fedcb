"""Ends agents whose processes use more than they may."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import anyio
import anyio.to_thread

from sandbox_agent.runtime.limits import Limits
from sandbox_agent.runtime.tree_usage import read_usage
from sandbox_agent.server.agents.connection import AgentConnection

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How often their use is read. An agent may exceed its limits for as long.
CHECK_SECONDS = 0.5


async def enforce(limits: Limits, running: Callable[[], Iterable[AgentConnection]]) -> None:
    """End every agent that exceeds the limits, until cancelled.

    Args:
        limits: what each agent may use.
        running: returns the connections whose agent may run.
    """
    if not any(limits):
        return
    while True:
        await anyio.sleep(CHECK_SECONDS)
        connections = {connection.pid: connection for connection in running() if connection.alive}
        if not connections:
            continue
        usages = await anyio.to_thread.run_sync(read_usage, connections)
        for pid, usage in usages.items():
            connection, reason = connections[pid], limits.excess(usage)
            if reason is not None and connection.alive and not connection.stopping:
                logger.warning("agent %s of %s is ended: %s", connection.agent, connection.server_id, reason)
                await connection.kill(reason)
