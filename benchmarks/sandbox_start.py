"""How long a sandbox takes until its first prompt is answered: ``python -m benchmarks.sandbox_start``.

Rounds alternate between the providers on this machine, with the mock agent.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

from sandbox_agent import SandboxAgent, SandboxProvider, jail, local

ROUNDS = 9
PROVIDERS: dict[str, Callable[[], SandboxProvider]] = {
    "local()": lambda: local(log="silent"),
    "jail()": lambda: jail(log="silent"),
    "jail(network=False)": lambda: jail(log="silent", network=False),
}


async def measure(provider: SandboxProvider) -> float:
    """Return the milliseconds until a prompt is answered."""
    began = time.perf_counter()
    async with SandboxAgent.start(sandbox=provider) as sdk:
        session = await sdk.create_session(agent="mock")
        await session.prompt("echo ready")
        took = (time.perf_counter() - began) * 1000
        await sdk.destroy_sandbox()
    return took


async def main() -> None:
    """Print the median and the slowest of each provider."""
    found: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    for _ in range(ROUNDS):
        for name, make in PROVIDERS.items():
            found[name].append(await measure(make()))
    for name, times in found.items():
        print(f"{name:20} median {statistics.median(times):5.0f} ms, slowest {max(times):5.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())
