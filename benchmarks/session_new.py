"""``python -m benchmarks.session_new``: what the server adds to the start of an agent and its first session.

Measures the time from nothing to the answer of session/new, directly over the agent's pipes and by two POSTs
to the server, which starts the agent for the first of them. The two alternate, and so does which of them is
first; each begins when no process of the one before is left. Agents other than the mock are those that are
installed in ``$XDG_DATA_HOME``, with the scripted model and an empty home. With ``--git``, the workspace is a
Git repository, whose state the server records.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

from anyio.from_thread import start_blocking_portal
from tests.support.servers import ServerProcess, our_server

from sandbox_agent.agents.environment import AgentEnvironment
from sandbox_agent.agents.launch import resolve
from sandbox_agent.engine.handshake import initialize_params
from sandbox_agent.runtime.keeper import become_subreaper, kill_children
from sandbox_agent.testing.agents.profile import profile_of
from sandbox_agent.testing.llm import ScriptedLLM
from sandbox_agent.wire.jsonrpc import members

# What the server may add, in milliseconds.
BAR_MS = 10.0
CLIENT = "benchmark"


def request(number: int, method: str, params: object) -> bytes:
    """Return a request as one line."""
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


def requests(folder: str) -> list[bytes]:
    """Return the two requests."""
    return [
        request(1, "initialize", initialize_params(CLIENT, answers_questions=False)),
        request(2, "session/new", {"cwd": folder, "mcpServers": []}),
    ]


def read_response(stream: IO[bytes], number: int) -> dict[str, Any]:
    """Return the response with that id; other lines are skipped."""
    while line := stream.readline():
        with contextlib.suppress(ValueError):
            message = members(json.loads(line))
            if message.get("id") == number and "method" not in message:
                return message
    raise RuntimeError("the agent ended")


def check(response: dict[str, Any]) -> None:
    """Raise an error if a response is one."""
    if "error" in response:
        raise RuntimeError(f"the agent refused: {response['error']}")


def start_directly(server: ServerProcess, agent: str, folder: str) -> float:
    """Return the seconds until session/new is answered over the agent's own pipes; no process is left."""
    launch = resolve(agent)
    environment = {**AgentEnvironment().variables(agent), **launch.env}
    begin = time.perf_counter()
    with subprocess.Popen(
        launch.argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=launch.cwd,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for number, line in enumerate(requests(folder), 1):
                process.stdin.write(line + b"\n")
                process.stdin.flush()
                check(read_response(process.stdout, number))
            return time.perf_counter() - begin
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            kill_children({server.pid})  # what it has left is now a child of this process


def start_by_server(server: ServerProcess, agent: str, folder: str, number: int, files: int) -> float:
    """Return the seconds until session/new is answered by the server; the agent is ended afterwards."""
    answer: dict[str, Any] = {}
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.connect()
    path = f"/v1/acp/bench-{agent}-{number}"
    headers = {"content-type": "application/json"}
    begin = time.perf_counter()
    for query, line in zip((f"?agent={agent}", ""), requests(folder), strict=True):
        connection.request("POST", path + query, body=line, headers=headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {body[:500]!r}")
        answer = json.loads(body)
        check(answer)
    elapsed = time.perf_counter() - begin
    if files:  # answered when the state of the workspace is recorded: Git has ended
        query = urlencode({"agent": agent, "session": answer["result"]["sessionId"]})
        connection.request("GET", f"/v1/fs/diff?{query}")
        response = connection.getresponse()
        if response.read() or response.status != 200:
            raise RuntimeError("the state of the workspace was not recorded")
    connection.request("DELETE", path)
    connection.getresponse().read()
    connection.close()
    return elapsed


def make_repository(folder: Path, files: int) -> None:
    """Make a Git repository with that many files, of which a few are changed and a few are new."""
    for number in range(files):
        path = folder / f"part{number % 50}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"VALUE = {number}\n" * 20)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    for number in range(10):
        (folder / f"part{number}" / f"module{number}.py").write_text("VALUE = 0\n")
        (folder / f"new{number}.py").write_text("VALUE = 1\n")


def measure(server: ServerProcess, agent: str, rounds: int, files: int) -> bool:
    """Print the figures of an agent; return whether they are within the bar."""
    direct: list[float] = []
    served: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        if files:
            make_repository(Path(folder), files)
        for number in range(rounds + 1):
            steps = [
                lambda: direct.append(start_directly(server, agent, folder) * 1000),
                lambda number=number: served.append(
                    start_by_server(server, agent, folder, number, files) * 1000
                ),
            ]
            for step in steps if number % 2 else reversed(steps):
                step()
    del direct[0], served[0]  # the first round fills caches
    least, median, most = median_interval([mine - own for mine, own in zip(served, direct, strict=True)])
    print(
        f"{agent:8}{'in Git' if files else '':7} direct p50 {statistics.median(direct):7.1f} ms, "
        f"server p50 {statistics.median(served):7.1f} ms, added {median:+5.1f} ms (median of {rounds} pairs, "
        f"between {least:+.1f} and {most:+.1f} with 95 %; bar {BAR_MS:g} ms)",
        flush=True,
    )
    return median <= BAR_MS


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, between the ends of an interval that has the true one with 95 %.

    The ends are values at ranks, by the binomial distribution; nothing is assumed of how the values spread.
    """
    ordered = sorted(values)
    distance = 0.98 * len(ordered) ** 0.5
    low = max(0, round(len(ordered) / 2 - distance) - 1)
    high = min(len(ordered) - 1, round(len(ordered) / 2 + distance))
    return ordered[low], statistics.median(ordered), ordered[high]


def measure_alone(agent: str, rounds: int, files: int) -> bool:
    """Measure an agent with a server, a model and a home of its own."""
    with (
        tempfile.TemporaryDirectory() as name,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ScriptedLLM()) as llm,
    ):
        folder, home, profile = Path(name), Path(name) / "home", profile_of(agent)
        home.mkdir()
        profile.write_files(llm.url, home)
        data = os.environ.get("XDG_DATA_HOME") or str(folder / "data")
        own = {"HOME": str(home), "XDG_DATA_HOME": data, **profile.variables(llm.url, home)}
        former = dict(os.environ)
        os.environ.update(own)  # the same for the agent that is started here
        try:
            with our_server(folder, "--store", f"sqlite:{folder}/store.db", env=own) as server:
                return measure(server, agent, rounds, files)
        finally:
            os.environ.clear()
            os.environ.update(former)


def main() -> None:
    """Measure every agent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("agents", nargs="*", default=["mock"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--git", action="store_true", help="measure in a Git repository, too")
    parser.add_argument("--files", type=int, default=3000, help="how many files the repository has")
    arguments = parser.parse_args()
    become_subreaper()
    held = [
        measure_alone(agent, arguments.rounds, files)
        for agent in arguments.agents
        for files in ([0, arguments.files] if arguments.git else [0])
    ]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
