"""``/v1/metrics``: what this server counts, and what it has at this moment, for Prometheus."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.server import metrics
from sandbox_agent.server.http.operations import Answer, Operation, text_schema
from sandbox_agent.server.metrics import Family, Labels, counter, gauge
from sandbox_agent.server.state import ServerState, degradation, state_of

_STARTED = time.time()
_BEGUN = time.monotonic()


@Operation(
    "GET",
    "/v1/metrics",
    tag="meta",
    answers={200: Answer("The metrics.", text_schema(), metrics.CONTENT_TYPE.partition(";")[0])},
)
async def get_v1_metrics(request: Request) -> Response:
    """Metrics.

    Returns the metrics of the server in Prometheus text format 0.0.4. Labels never have the names of sessions
    or connections, paths, or texts.
    """
    state = state_of(request)
    families = [*_server(state), *await _agents(state), *_sessions(state), *_process()]
    families += [each.collect() for each in metrics.COUNTED]
    text = metrics.expose(sorted(families))
    return Response(text, headers={"content-type": metrics.CONTENT_TYPE})


@cache
def _build() -> Labels:
    from importlib.metadata import version

    return version("sandbox-agent-py"), platform.python_version()


def _server(state: ServerState) -> Iterable[Family]:
    build: Labels = _build()
    yield gauge("sandbox_agent_build_info", "Always 1.", {build: 1}, "version", "python")
    yield gauge("sandbox_agent_uptime_seconds", "Time since the server started.", time.monotonic() - _BEGUN)
    yield gauge("sandbox_agent_http_connections", "Open connections.", len(state.connections))
    yield gauge(
        "sandbox_agent_store_degraded",
        "1 while the store refuses events or hangs, else 0.",
        degradation(state) is not None,
    )
    yield gauge(
        "sandbox_agent_recorder_queue_bytes",
        "ACP messages that are not stored yet. Agents are not read while it is over 20 MiB.",
        state.recorder.queued_bytes,
    )
    memory = state.bridge.spiller.memory
    yield gauge(
        "sandbox_agent_feed_memory_bytes", "Events of connections that are held in memory.", memory.used
    )
    processes = state.processes.list()
    yield gauge(
        "sandbox_agent_processes_running",
        "Running processes of /v1/processes.",
        sum(process.running for process in processes),
    )


async def _agents(state: ServerState) -> Iterable[Family]:
    running = state.bridge.running()
    count = Counter((connection.agent,) for connection in running)
    usage = await state.metering.read(running)
    memory = {(agent,): used for agent, used in usage.memory_bytes.items()}
    seconds = {(agent,): used for agent, used in usage.cpu_seconds.items()}
    return [
        gauge("sandbox_agent_agents_running", "Running agents.", count, "agent"),
        gauge(
            "sandbox_agent_agents_memory_bytes",
            "Resident memory of running agents and their tools (Linux).",
            memory,
            "agent",
        ),
        counter(
            "sandbox_agent_agents_cpu_seconds_total",
            "Processor time of agents and their tools, as of the last scrape in which they ran (Linux).",
            seconds,
            "agent",
        ),
    ]


def _sessions(state: ServerState) -> Iterable[Family]:
    projections = [session.projection for session in state.recorder.sessions]
    turns = sum(turn.state == "running" for each in projections for turn in each.turns.values())
    requests = [request.kind for each in projections for request in each.requests.values()]
    yield gauge(
        "sandbox_agent_sessions_open", "Sessions that are open at an agent.", state.recorder.open_sessions
    )
    yield gauge("sandbox_agent_turns_running", "Turns that run or wait for an answer.", turns)
    yield gauge(
        "sandbox_agent_permissions_pending",
        "Permission requests without an answer.",
        requests.count("permission"),
    )
    yield gauge("sandbox_agent_questions_pending", "Questions without an answer.", requests.count("question"))


def _process() -> Iterable[Family]:
    """Return the metrics that all Prometheus clients have, under the same names."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield counter("process_cpu_seconds_total", "Processor time of the server.", used.ru_utime + used.ru_stime)
    yield gauge("process_start_time_seconds", "When the server started, since the epoch.", _STARTED)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield gauge("process_max_fds", "Most file descriptors that the server may have.", most)
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    with contextlib.suppress(OSError):
        yield gauge("process_open_fds", "File descriptors of the server.", len(os.listdir(folder)))  # noqa: PTH208
    with contextlib.suppress(OSError, ValueError):
        sizes = Path("/proc/self/statm").read_bytes().split()
        memory = int(sizes[1]) * os.sysconf("SC_PAGE_SIZE")
        yield gauge("process_resident_memory_bytes", "Memory of the server, without agents.", memory)


OPERATIONS = (get_v1_metrics,)
