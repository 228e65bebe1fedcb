"""Ends agents whose processes use more than they may."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import anyio
import anyio.to_thread

from sandbox_agent.runtime.limits import LimitedGroup, Limits
from sandbox_agent.runtime.tree_usage import read_usage
from sandbox_agent.server.agents.connection import AgentConnection

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How often their use is read. An agent may exceed its limits for as long.
CHECK_SECONDS = 0.5


async def enforce(
    limits: Limits, running: Callable[[], Mapping[AgentConnection, LimitedGroup | None]]
) -> None:
    """End every agent that exceeds the limits, until cancelled.

    Args:
        limits: what each agent may use.
        running: returns the connections whose agent may run, and their control groups.
    """
    if not any(limits):
        return
    survivors: dict[AgentConnection, LimitedGroup] = {}
    while True:
        await anyio.sleep(CHECK_SECONDS)
        for connection, group in survivors.items():
            if connection.alive and (excess := group.excess):
                group.survive()
                logger.warning(
                    "a process that agent %s of %s has started is killed: %s",
                    connection.agent,
                    connection.server_id,
                    excess,
                )
        groups = {connection: group for connection, group in running().items() if connection.alive}
        if not groups:
            continue
        # Whether it dies of what was killed just now shows the next check.
        survivors = {connection: group for connection, group in groups.items() if group and group.excess}
        for connection, reason in (await anyio.to_thread.run_sync(_find_excess, limits, groups)).items():
            if connection.alive and not connection.stopping:
                logger.warning("agent %s of %s is ended: %s", connection.agent, connection.server_id, reason)
                await connection.kill(reason)
                if group := groups[connection]:  # what forks may be faster than its keeper
                    await anyio.to_thread.run_sync(group.kill)


def _find_excess(
    limits: Limits, groups: Mapping[AgentConnection, LimitedGroup | None]
) -> dict[AgentConnection, str]:
    """Return the agents that exceed a limit, and which one. The kernel enforces that of a group's memory."""
    read = [connection.pid for connection, group in groups.items() if limits.processes or group is None]
    usages = read_usage(read) if read else {}
    found: dict[AgentConnection, str] = {}
    for connection, group in groups.items():
        watched = limits._replace(memory_bytes=0) if group else limits
        usage = usages.get(connection.pid)
        if usage and (reason := watched.excess(usage)):
            found[connection] = reason
    return found
