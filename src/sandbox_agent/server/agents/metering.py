"""What the agents use together, by agent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import anyio.to_thread

from sandbox_agent.runtime.tree_usage import read_usage
from sandbox_agent.server.agents.connection import AgentConnection


class AgentsUsage(NamedTuple):
    """What the processes of agents use, by the agent's id.

    Attributes:
        memory_bytes: the resident memory of those that run.
        cpu_seconds: the processor time of all that were seen, also of those that have ended.
    """

    memory_bytes: dict[str, int]
    cpu_seconds: dict[str, float]


class Metering:
    """Adds up the processor time of agents, as of the last time that each of them was seen."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[AgentConnection, float] = WeakKeyDictionary()
        self._totals: defaultdict[str, float] = defaultdict(float)

    async def read(self, connections: Sequence[AgentConnection]) -> AgentsUsage:
        """Return what the agents use that run now. Only on Linux; else there is nothing."""
        pids = [connection.pid for connection in connections]
        found = await anyio.to_thread.run_sync(read_usage, pids) if pids else {}
        memory: defaultdict[str, int] = defaultdict(int)
        for connection, pid in zip(connections, pids, strict=True):
            usage = found.get(pid)
            if usage is not None:
                memory[connection.agent] += usage.memory_bytes
                # The time of a tool that has ended without being waited for is no longer there.
                seen = self._seen.get(connection, 0.0)
                self._seen[connection] = max(seen, usage.cpu_seconds)
                self._totals[connection.agent] += max(0.0, usage.cpu_seconds - seen)
        return AgentsUsage(dict(memory), dict(self._totals))
