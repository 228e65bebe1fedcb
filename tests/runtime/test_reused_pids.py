"""A pid that was reaped may belong to another process: it is never signaled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from sandbox_agent import local
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.runtime import process_tree, warden_main
from sandbox_agent.runtime.process import Process
from tests.runtime.children import alive, gone, program

REUSES = 1_000
# How many processes run at a time.
AT_ONCE = 20


class Kernel:
    """Passes signals on to children that were not reaped, and notes the others, which may be anyone's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[int, int]] = []
        self.foreign: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "kill", self._checked(os.kill))
        monkeypatch.setattr(os, "killpg", self._checked(os.killpg))

    def _checked(self, send: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def checked(pid: int, signum: int) -> None:
            self.sent.append((pid, signum))
            try:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            except ChildProcessError:
                self.foreign.append((pid, signum))
                raise ProcessLookupError from None
            send(pid, signum)

        return checked


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def _none_tagged(_tag: str) -> list[int]:
    return []


@pytest.mark.anyio
async def test_a_process_that_was_reaped_is_never_signaled(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_tree, "find_tagged", _none_tagged)  # reading /proc takes most of the time

    async def run(number: int) -> None:
        process = await Process.spawn(["true"] if number % 2 else ["cat"])
        if number % 2:
            await process.wait()
        for _ in range(2):
            await process.stop(term_grace=0)
            await process.sweep()
        process.close()

    for start in range(0, REUSES, AT_ONCE):
        async with anyio.create_task_group() as tasks:
            for number in range(start, start + AT_ONCE):
                tasks.start_soon(run, number)
    assert len(kernel.sent) >= REUSES
    assert kernel.foreign == []


@pytest.mark.anyio
async def test_the_group_of_a_process_that_exits_is_killed_before_it_is_reaped(kernel: Kernel) -> None:
    body = "c = subprocess.Popen(['sleep', '60'], env={})\nprint(c.pid, flush=True)\n"  # without the tag
    process = await Process.spawn(program(body))
    with anyio.fail_after(20):
        grandchild = int(await process.stdout.read())
        await process.wait()
    assert gone([grandchild])
    assert kernel.foreign == []
    await process.stop()
    process.close()


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["destroy", "kill", "restart"])
async def test_a_local_server_that_has_ended_is_not_signaled_once_it_was_reaped(
    kernel: Kernel, way: str
) -> None:
    provider = local(log="silent")
    server = await provider.create()
    try:
        pid = provider.pid(server)
        assert pid is not None
        handle = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            with anyio.fail_after(20):
                await anyio.wait_readable(handle)
        finally:
            os.close(handle)
        await (provider.ensure_server(server) if way == "restart" else getattr(provider, way)(server))
        assert (pid, signal.SIGKILL) in kernel.sent[1:]  # the group of the server that had ended
        assert kernel.foreign == []
    finally:
        await provider.destroy(server)
    assert kernel.foreign == []


@pytest.mark.anyio
async def test_a_local_server_that_does_not_start_is_not_signaled_once_it_was_reaped(kernel: Kernel) -> None:
    with pytest.raises(SandboxAgentError, match="exited with code"):
        await local(log="silent", args=["--no-such-option"]).create()
    assert kernel.foreign == []


def test_the_warden_does_not_signal_a_group_whose_leader_has_another_pid_now(tmp_path: Path) -> None:
    """A process without the server's tag has the pid that the warden was told."""
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        subprocess.run(
            [sys.executable, "-m", warden_main.__name__, "warden-test-stranger"],
            input=f"+{stranger.pid}\n".encode(),
            check=True,
        )
        subprocess.run(
            [sys.executable, "-m", warden_main.__name__, "warden-test-stranger", str(stranger.pid)],
            stdin=subprocess.DEVNULL,
            check=True,
        )
        assert alive(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


# Runs as process 1 of a namespace, where it chooses the pid of the next process.
REUSE = """
import asyncio, os, subprocess, sys
from pathlib import Path
from sandbox_agent.runtime.process import Process

LAST = Path("/proc/sys/kernel/ns_last_pid")

def reuse(pid):
    # Another thread or process may be faster: try again until the pid is that of a stranger.
    for _ in range(100):
        LAST.write_text(str(pid - 1))
        stranger = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)
        if stranger.pid == pid:
            return stranger
        stranger.stdin.close()
        stranger.wait()
    sys.exit("the pid could not be used again")

async def main(count):
    for number in range(count):
        process = await Process.spawn(["true"] if number % 2 else ["cat"])
        if number % 2:
            await process.wait()
        else:
            await process.stop()
        stranger = reuse(process.pid)
        await process.sweep()
        await process.stop()
        await process.sweep()
        process.close()
        assert stranger.poll() is None, "a stranger was killed"
        stranger.stdin.close()
        assert stranger.wait() == 0
    print(count)

asyncio.run(main(int(sys.argv[1])))
"""


@pytest.mark.soak
def test_a_stranger_that_has_the_pid_of_a_reaped_process_lives_on() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("choosing the pid of a process needs root and unshare")
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REUSE, str(REUSES)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == REUSES
