"""How long a sandbox takes until its first prompt is answered: ``python -m benchmarks.sandbox_start``.

Rounds alternate between the providers on this machine, with the mock agent. Docker and Podman are measured
where they are found and have the image of ``sandbox-agent image build`` or of SANDBOX_AGENT_BENCH_IMAGE.
For them, also: the time until a prompt is answered whose container was killed, and twenty sandboxes at once.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable

from sandbox_agent import (
    DockerProvider,
    PodmanProvider,
    SandboxAgent,
    SandboxAgentError,
    SandboxProvider,
    docker,
    jail,
    local,
    podman,
)

ROUNDS = 9
AT_ONCE = 20
IMAGE = os.environ.get("SANDBOX_AGENT_BENCH_IMAGE")
PROVIDERS: dict[str, Callable[[], SandboxProvider]] = {
    "local()": lambda: local(log="silent"),
    "jail()": lambda: jail(log="silent"),
    "jail(network=False)": lambda: jail(log="silent", network=False),
    "docker()": lambda: docker(IMAGE),
    "docker(network='none')": lambda: docker(IMAGE, network="none"),
    "podman()": lambda: podman(IMAGE),
    "podman(network='none')": lambda: podman(IMAGE, network="none"),
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


async def measure_recovery(provider: DockerProvider | PodmanProvider) -> float:
    """Return the milliseconds from the end of a container to the answer to the next prompt."""
    async with SandboxAgent.start(sandbox=provider) as sdk:
        session = await sdk.create_session(agent="mock")
        await session.prompt("echo ready")
        assert sdk.sandbox_id is not None
        raw_id = sdk.sandbox_id.partition("/")[2]
        await provider.execute(raw_id, ["sh", "-c", "kill -9 -1"])
        began = time.perf_counter()
        await session.prompt("echo again")
        took = (time.perf_counter() - began) * 1000
        await sdk.destroy_sandbox()
    return took


async def main() -> None:
    """Print the median and the slowest of each provider."""
    found: dict[str, list[float]] = {}
    for name, make in PROVIDERS.items():
        try:
            await measure(make())
        except SandboxAgentError as error:
            print(f"{name:24} not measured: {error}")
        else:
            found[name] = []
    for _ in range(ROUNDS):
        for name, times in found.items():
            times.append(await measure(PROVIDERS[name]()))
    for name, times in found.items():
        print(f"{name:24} median {statistics.median(times):5.0f} ms, slowest {max(times):5.0f} ms")
    for name in ("docker()", "podman()"):
        if name not in found:
            continue
        kind = DockerProvider if name == "docker()" else PodmanProvider
        times = [await measure_recovery(kind(IMAGE)) for _ in range(ROUNDS)]
        print(f"{name:24} killed: median {statistics.median(times):5.0f} ms, slowest {max(times):5.0f} ms")
        began = time.perf_counter()
        done = await asyncio.gather(
            *(measure(kind(IMAGE, memory="256m")) for _ in range(AT_ONCE)), return_exceptions=True
        )
        answered = sum(isinstance(item, float) for item in done)
        print(f"{name:24} {answered} of {AT_ONCE} at once in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    asyncio.run(main())
