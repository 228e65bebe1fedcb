"""A local server and its agents end with the program that started them, however the program ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent, local
from tests.interop.leftovers import Leftovers
from tests.runtime.children import gone
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip, rust_server

# Prints the session's id when its turn is running.
PROGRAM = """
import asyncio, os, sys
from sandbox_agent import SandboxAgent, local

async def main(log, fork, *prompts):
    provider = local(store="sqlite:server.db", log=log, agent_env_policy="default")
    async with SandboxAgent.start(sandbox=provider, persist="sessions.db") as sdk:
        session = await sdk.create_session(agent="mock")
        for prompt in prompts[:-1]:
            await session.prompt(prompt)
        if fork and not os.fork():
            os.execvp("sleep", ["sleep", "60"]) if fork == "exec" else os.read(os.pipe()[0], 1)
        async for event in session.stream(prompts[-1]):
            if event.sender == "agent":
                print(session.id, flush=True)
                break
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""
STREAM = "stream 4000 10"


class Program:
    """The program above in a folder, and the processes that it starts."""

    def __init__(self, folder: Path, *args: str, code: str = PROGRAM) -> None:
        self._leftovers = Leftovers()
        errors = folder / "program.stderr"
        with errors.open("wb") as stderr:
            self._child = subprocess.Popen(
                [sys.executable, "-c", code, *args],
                cwd=folder,
                env={**os.environ, **self._leftovers.env},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._child.stdout is not None
        with self._child.stdout as output:
            self.said: str = output.readline().strip()
        if not self.said:
            self.end(signal.SIGKILL)
            raise AssertionError(f"the program ended before it was ready: {errors.read_text()}")

    def find(self, *words: str) -> list[int]:
        """Return the pids of the processes that it started and whose command line has one of the words."""
        return list(self._leftovers.find(*words))

    def end(self, how: signal.Signals) -> None:
        """Send a signal to the program alone and wait for its end."""
        self._child.send_signal(how)
        self._child.wait(10)

    def wait_all_gone(self) -> None:
        """Wait until nothing that it started is left."""
        self._leftovers.wait()


def server_and_agent(program: Program) -> list[int]:
    """Return the pids of its server and its agent."""
    found = [*program.find("sandbox_agent.cli.main"), *program.find("agents.mock")]
    assert len(found) == 2
    return found


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("how", "prompts"),
    [
        (signal.SIGKILL, [STREAM]),
        (signal.SIGTERM, [STREAM]),
        pytest.param(signal.SIGHUP, [STREAM], marks=pytest.mark.soak),
        pytest.param(signal.SIGINT, [STREAM], marks=pytest.mark.soak),
        (signal.SIGKILL, ["deaf", STREAM]),
    ],
)
async def test_the_next_program_finds_the_turn_interrupted(
    tmp_path: Path, how: signal.Signals, prompts: Sequence[str]
) -> None:
    program = Program(tmp_path, "silent", "", *prompts)
    pids = server_and_agent(program)
    program.end(how)
    assert gone(pids)
    provider = local(store=f"sqlite:{tmp_path / 'server.db'}", log="silent")
    async with SandboxAgent.start(sandbox=provider, persist=tmp_path / "sessions.db") as sdk:
        try:
            (recorded,) = (await sdk.sessions.list()).items
            turns = (await sdk.sessions.get(recorded.session_id)).turns
            assert turns is not None
            assert [turn.state for turn in turns] == [*["done"] * len(prompts[1:]), "interrupted"]
            session = await sdk.resume_session(program.said)
            assert (await session.prompt("echo again")).stop_reason == "end_turn"
        finally:
            await sdk.destroy_sandbox()


@pytest.mark.parametrize("log", ["inherit", "server.log"])
def test_the_server_ends_wherever_its_output_goes(tmp_path: Path, log: str) -> None:
    program = Program(tmp_path, log, "", STREAM)
    pids = server_and_agent(program)
    program.end(signal.SIGKILL)
    assert gone(pids)
    if log == "server.log":
        assert "shutting down: ending agents" in (tmp_path / log).read_text()


@pytest.mark.parametrize("fork", ["a child that stays in Python", "exec"])
def test_a_process_that_the_program_started_does_not_hold_the_server(tmp_path: Path, fork: str) -> None:
    program = Program(tmp_path, "silent", fork, STREAM)
    pids = server_and_agent(program)
    program.end(signal.SIGKILL)
    assert gone(pids)
    (child,) = program.find()
    os.kill(child, signal.SIGKILL)
    program.wait_all_gone()


def test_agents_inherit_neither_the_pipe_nor_its_variable(tmp_path: Path) -> None:
    program = Program(tmp_path, "silent", "", STREAM)
    server, agent = (Path(f"/proc/{pid}") for pid in server_and_agent(program))
    descriptor = re.search(rb"SANDBOX_AGENT_LIFELINE=(\d+)", (server / "environ").read_bytes())
    assert descriptor is not None
    pipe = (server / f"fd/{int(descriptor[1])}").readlink()
    assert pipe.name.startswith("pipe:")
    (warden,) = (Path(f"/proc/{pid}") for pid in _children(server))
    (keeper,) = (Path(f"/proc/{pid}") for pid in _children(warden))
    assert _children(keeper) == [agent.name]
    for process in (agent, keeper, warden):
        assert pipe not in [link.readlink() for link in (process / "fd").iterdir()]
        assert b"SANDBOX_AGENT_LIFELINE" not in (process / "environ").read_bytes()
    program.end(signal.SIGKILL)
    assert gone(int(process.name) for process in (server, agent, keeper, warden))


def _children(process: Path) -> list[str]:
    return (process / f"task/{process.name}/children").read_text().split()


@pytest.mark.soak
def test_a_server_whose_shutdown_hangs_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import signal\nsignal.pthread_kill = lambda *_: None\n")
    code = PROGRAM.replace("log=log", f"log=log, env={{'PYTHONPATH': {str(tmp_path)!r}}}")
    program = Program(tmp_path, "silent", "", STREAM, code=code)
    server_and_agent(program)
    program.end(signal.SIGKILL)
    program.wait_all_gone()


# Another server: it ignores SIGTERM and the pipe, and its agent has left its process group.
OTHER = """#!{python}
import http.server, signal, subprocess, sys
if {deaf}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"], start_new_session=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
STARTER = """
import asyncio, sys
from sandbox_agent import local

async def main(binary, *args):
    print(await local(binary=binary, log="silent", args=args).create(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the server's process group ends")
@pytest.mark.parametrize("deaf", [False, True])
def test_another_server_and_what_it_started_end_with_the_program(tmp_path: Path, deaf: bool) -> None:
    other = tmp_path / "other-server"
    other.write_text(OTHER.format(python=sys.executable, deaf=deaf))
    other.chmod(0o755)
    program = Program(tmp_path, str(other), code=STARTER)
    pids = [*program.find("other-server server"), *program.find("sleep 600")]
    assert len(pids) == 2
    program.end(signal.SIGKILL)
    assert gone(pids)


def test_the_published_server_ends_with_the_program(tmp_path: Path) -> None:
    npm_or_skip(PUBLISHED_SERVER, "the end of the published server")
    program = Program(tmp_path, str(rust_server()), "--no-telemetry", code=STARTER)
    pids = program.find("--no-telemetry")
    assert len(pids) == 2  # the program, which names the option too, and the server
    program.end(signal.SIGKILL)
    assert gone(pids)


@pytest.mark.anyio
async def test_stopping_another_server_ends_what_watches_it(tmp_path: Path) -> None:
    other = tmp_path / "other-server"
    other.write_text(OTHER.format(python=sys.executable, deaf=False))
    other.chmod(0o755)
    provider = local(binary=other, log="silent")
    raw_id = await provider.create()
    with anyio.fail_after(20):
        (watcher,) = watchers()
        await provider.destroy(raw_id)
    assert gone([watcher])


def watchers() -> list[int]:
    """Return the watchers that this process started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"warden_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
