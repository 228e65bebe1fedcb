"""The warden: a parent that is killed leaves no tree behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from sandbox_agent.runtime.process import Process
from sandbox_agent.runtime.warden import Warden
from tests.runtime.children import alive, gone, program

PARENT = """
import asyncio, sys
from sandbox_agent.runtime.process import Process
from sandbox_agent.runtime.warden import Warden

CHILD = '''
import os, signal, subprocess, sys, time
signal.signal(15, signal.SIG_IGN)
c = subprocess.Popen(['sleep', '60'], start_new_session=True)
os.write(1, b'%d %d' % (os.getpid(), c.pid))
time.sleep(60)
'''

async def main():
    warden = Warden('warden-test-' + sys.argv[1])
    await warden.ready()
    pids = []
    for _ in range(2):
        process = await Process.spawn([sys.executable, '-c', CHILD], tag_prefix=warden.tag)
        await warden.watch(process.pid)
        pids += (await process.stdout.read()).split()
    print(*[int(pid) for pid in pids], flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_child_and_no_grandchild(how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(how)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 4
        assert all(alive(pid) for pid in pids)
        parent.send_signal(how)
        parent.wait(10)
        assert gone(pids)


@pytest.mark.anyio
async def test_a_released_group_is_left_alone_and_a_warden_that_was_killed_is_replaced() -> None:
    warden = Warden("warden-test-release")
    await warden.ready()
    kept = await Process.spawn(program("time.sleep(60)"), tag_prefix="somebody-else-")
    watched = await Process.spawn(program("time.sleep(60)"), tag_prefix=warden.tag)
    try:
        with anyio.fail_after(20):
            await warden.watch(kept.pid)
            first = await _warden_pid(warden)
            os.kill(first, signal.SIGKILL)
            assert gone([first])
            await warden.watch(watched.pid)
            assert await _warden_pid(warden) != first
            await warden.release(kept.pid)
            await warden.close()
            await watched.wait()
        assert alive(kept.pid)
    finally:
        for process in (kept, watched):
            await process.stop(eof_grace=0)
            process.close()


async def _warden_pid(warden: Warden) -> int:
    """Return the pid of the process that has the warden's tag as its argument, once it can be seen."""
    while (pid := _find(warden.tag.encode())) is None:
        await anyio.lowlevel.checkpoint()
    return pid


def _find(argument: bytes) -> int | None:
    names = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return next((int(name) for name in names if argument in _arguments(name) and alive(int(name))), None)


def _arguments(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_the_warden_needs_nothing_but_the_standard_library() -> None:
    source = Path(__file__).parents[2] / "src"
    code = (
        "import sys; import sandbox_agent.runtime.warden_main;"
        "heavy = ('anyio', 'msgspec', 'pathlib', 'starlette', 'urllib', 'uvloop');"
        "print([name for name in sys.modules if name.split('.')[0] in heavy])"
    )
    found = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.anyio
async def test_a_warden_that_is_stopped_is_killed_when_it_is_closed() -> None:
    warden = Warden("warden-test-stopped")
    await warden.ready()
    with anyio.fail_after(20):
        pid = await _warden_pid(warden)
        os.kill(pid, signal.SIGSTOP)
        await warden.close()
    assert gone([pid])


@pytest.mark.anyio
async def test_a_warden_that_does_not_read_is_replaced() -> None:
    warden = Warden("warden-test-unread")
    await warden.ready()
    with anyio.fail_after(20):
        first = await _warden_pid(warden)
        os.kill(first, signal.SIGSTOP)
        for group in range(10_000_000, 10_000_000 + 10_000):  # more than a pipe holds; no pid is that high
            await warden.watch(group)
        assert gone([first])
        assert await _warden_pid(warden) != first
        await warden.close()


@pytest.mark.anyio
async def test_a_warden_that_ends_is_replaced_at_once_and_the_new_one_knows_the_groups(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warden = Warden("warden-test-replaced")
    await warden.ready()
    watched = await Process.spawn(program("time.sleep(60)"), tag_prefix=warden.tag)
    try:
        with anyio.fail_after(20):
            await warden.watch(watched.pid)
            first = await _warden_pid(warden)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(warden.run)
                os.kill(first, signal.SIGKILL)
                assert gone([first])
                assert await _warden_pid(warden) != first
                await warden.close()
            await watched.wait()
            assert f"process {first}, has ended (-9)" in caplog.text
    finally:
        await watched.stop(eof_grace=0)
        watched.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has keepers")
def test_a_warden_without_room_for_a_process_says_so_and_goes_on() -> None:
    script = """
import os, socket
from sandbox_agent.runtime.warden_main import _Keepers

def refuse():
    raise BlockingIOError(11, "no room")

server, warden = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
keepers = _Keepers(warden.detach())
os.fork, fork = refuse, os.fork
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
socket.send_fds(server, [b"!"], [theirs.fileno()])
theirs.close()
keepers.handle(keepers.descriptors[0])
print(ours.recv(100).decode(), ours.recv(100) == b"")
server.send(b"!")
keepers.handle(keepers.descriptors[0])
os._exit(0 if fork() == 0 else os.wait()[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ('{"errno": 11} True\n', "", 0)
