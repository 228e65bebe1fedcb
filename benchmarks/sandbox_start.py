"""How long a sandbox takes until its first prompt is answered: ``python -m benchmarks.sandbox_start``.

Rounds alternate between the providers on this machine, with the mock agent. Docker and Podman are measured
where they are found and have the image of ``sandbox-agent image build`` or of SANDBOX_AGENT_BENCH_IMAGE.
With ``--engines``, as root on Debian, both are started with the image of the tests and ended afterwards.
For them, also: the time until a prompt is answered whose container was killed, and twenty sandboxes at once.
The exit code is 1 if a median is above its bar, a sandbox does not answer, or a session loses an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any

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
from sandbox_agent.providers.engine.api import EngineApi

ROUNDS = 9
AT_ONCE = 20
# Milliseconds.
RECOVERY_BAR = 3000
BARS = {"docker": 1200, "podman": 1200, "jail": 600}
Make = Callable[[], SandboxProvider]


def local_providers() -> dict[str, Make]:
    """Return those that need no engine."""
    return {
        "local()": lambda: local(log="silent"),
        "jail()": lambda: jail(log="silent"),
        "jail(network=False)": lambda: jail(log="silent", network=False),
    }


def providers_of(engine: str, options: dict[str, Any]) -> dict[str, Make]:
    """Return those of an engine."""
    make = docker if engine == "docker" else podman
    return {
        f"{engine}()": lambda: make(**options),
        f"{engine}(network='none')": lambda: make(**options, network="none"),
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


async def measure_recovery(provider: DockerProvider | PodmanProvider, api: EngineApi) -> float:
    """Return the milliseconds from the end of a container to the answer to the next prompt.

    Raises:
        SandboxAgentError: The session has lost events.
    """
    async with SandboxAgent.start(sandbox=provider) as sdk:
        try:
            session = await sdk.create_session(agent="mock")
            await session.prompt("echo ready")
            before = await event_ids(sdk, session.id)
            assert sdk.sandbox_id is not None
            raw_id = sdk.sandbox_id.partition("/")[2]
            await api.request("POST", f"/containers/{raw_id}/kill")
            await api.wait_exited(raw_id)
            began = time.perf_counter()
            await session.prompt("echo again")
            took = (time.perf_counter() - began) * 1000
            after = await event_ids(sdk, session.id)
            if after[: len(before)] != before or len(after) <= len(before):
                raise SandboxAgentError("the session has lost events")
        finally:
            await sdk.destroy_sandbox()
    return took


async def event_ids(sdk: SandboxAgent, session_id: str) -> list[str]:
    """Return the ids of the events of a session that are stored."""
    return [event.id for event in (await sdk.get_events(session_id=session_id, limit=1_000)).items]


def report(name: str, times: list[float], bar: float | None) -> bool:
    """Print the median and the slowest. Return whether the median is within its bar."""
    median = statistics.median(times)
    is_good = bar is None or median <= bar
    shown = "" if bar is None else f"   bar {bar:5.0f} ms{'' if is_good else '   MISSED'}"
    print(f"{name:32} median {median:5.0f} ms, slowest {max(times):5.0f} ms{shown}", flush=True)
    return is_good


async def measure_starts(providers: dict[str, Make]) -> tuple[list[str], bool]:
    """Print the times of the providers that work here. Return their names and whether the bars are kept."""
    found: dict[str, list[float]] = {}
    for name, make in providers.items():
        try:
            await measure(make())
        except SandboxAgentError as error:
            print(f"{name:32} not measured: {error}")
        else:
            found[name] = []
    for _ in range(ROUNDS):
        for name, times in found.items():
            times.append(await measure(providers[name]()))
    good = [report(name, times, BARS.get(name.partition("(")[0])) for name, times in found.items()]
    return list(found), all(good)


async def measure_engine(engine: str, options: dict[str, Any]) -> bool:
    """Print what needs an engine. Return whether the bars are kept."""
    kind = DockerProvider if engine == "docker" else PodmanProvider
    api = EngineApi("docker" if engine == "docker" else "podman", options.get("host"))
    times = [await measure_recovery(kind(**options), api) for _ in range(ROUNDS)]
    is_good = report(f"{engine}(), killed", times, RECOVERY_BAR)
    began = time.perf_counter()
    starts: list[Awaitable[float]] = [measure(kind(**options, memory="256m")) for _ in range(AT_ONCE)]
    done = await asyncio.gather(*starts, return_exceptions=True)
    answered = sum(isinstance(item, float) for item in done)
    took = time.perf_counter() - began
    print(f"{f'{engine}(), at once':32} {answered} of {AT_ONCE} in {took:.1f} s", flush=True)
    return is_good and answered == AT_ONCE


@contextlib.contextmanager
def engines(*, own: bool) -> Generator[dict[str, dict[str, Any]]]:
    """Yield the options of each engine's providers."""
    if not own:
        options = {"image": os.environ.get("SANDBOX_AGENT_BENCH_IMAGE")}
        yield {"docker": options, "podman": options}
        return
    from tests.support.engines import IMAGE, running_engine

    with running_engine("docker") as one, running_engine("podman") as two:
        yield {found.name: {"image": IMAGE, "host": found.host} for found in (one, two)}


async def main(found: dict[str, dict[str, Any]]) -> bool:
    """Print all figures. Return whether the bars are kept."""
    providers = local_providers()
    for engine, options in found.items():
        providers |= providers_of(engine, options)
    names, is_good = await measure_starts(providers)
    for engine, options in found.items():
        if f"{engine}()" in names:
            is_good &= await measure_engine(engine, options)
    return is_good


if __name__ == "__main__":
    with engines(own="--engines" in sys.argv[1:]) as options_by_engine:
        sys.exit(0 if asyncio.run(main(options_by_engine)) else 1)
