"""Real children: the ladder, exits with held pipes, backpressure, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from sandbox_agent.runtime.process import EOF_GRACE, STDERR_TAIL_BYTES, ExitStatus, Process, SpawnError
from sandbox_agent.runtime.process_tree import TAG_VARIABLE, find_tagged
from tests.runtime.children import alive, gone, program

pytestmark = pytest.mark.anyio

# What HTTP.md promises for a whole DELETE.
LADDER_SECONDS = 2.0
READY = "sys.stdout.write('ready\\n'); sys.stdout.flush()\n"


@asynccontextmanager
async def running(body: str) -> AsyncGenerator[Process]:
    process = await Process.spawn(program(body))
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await process.stop(eof_grace=0, term_grace=0)
        process.close()


async def line(process: Process) -> str:
    """Read one line of its stdout."""
    text = b""
    with anyio.fail_after(20):
        while not text.endswith(b"\n"):
            data = await process.stdout.read()
            assert data, "stdout ended"
            text += data
    return text.decode().strip()


async def test_a_child_that_obeys_the_end_of_stdin_exits_by_itself() -> None:
    async with running(READY + "sys.stdin.read(); sys.exit(3)") as process:
        await line(process)
        assert process.status is None
        assert await process.stop() == ExitStatus(3, None)
        assert process.status == ExitStatus(3, None)


async def test_a_child_that_goes_on_after_eof_gets_sigterm() -> None:
    async with running(
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(9))\n" + READY + "time.sleep(60)"
    ) as process:
        await line(process)
        begun = time.monotonic()
        assert await process.stop() == ExitStatus(9, None)
        assert EOF_GRACE <= time.monotonic() - begun < LADDER_SECONDS


async def test_a_child_that_ignores_everything_is_killed_within_two_seconds() -> None:
    body = "for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n" + READY + "while True: time.sleep(60)"
    async with running(body) as process:
        await line(process)
        begun = time.monotonic()
        assert await process.stop() == ExitStatus(None, signal.SIGKILL)
        assert time.monotonic() - begun < LADDER_SECONDS
        assert gone([process.pid])


@pytest.mark.parametrize("leader", ["sys.stdin.read()", "signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
@pytest.mark.parametrize("session", [False, True])
async def test_a_grandchild_that_ignores_sigterm_is_gone_with_its_leader(leader: str, session: bool) -> None:
    body = (
        "code = 'import os, signal, time; signal.signal(15, 1); os.write(1, b\"1\"); time.sleep(60)'\n"
        "command = [sys.executable, '-c', code]\n"
        f"c = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session={session})\n"
        "c.stdout.read(1)\n"
        "print(c.pid, flush=True)\n"
        f"{leader}"
    )
    async with running(body) as process:
        grandchild = int(await line(process))
        assert alive(grandchild)
        assert grandchild in find_tagged(process.tag)
        begun = time.monotonic()
        await process.stop()
        assert time.monotonic() - begun < LADDER_SECONDS
        assert gone([process.pid, grandchild])
        assert find_tagged(process.tag) == []


async def test_a_whole_tree_of_sessions_is_found_by_its_tag() -> None:
    body = (
        "pids = []\n"
        "for depth in range(3):\n"
        "    r, w = os.pipe()\n"
        "    if os.fork():\n"
        "        break\n"
        "    os.setsid()\n"
        "os.write(1, b'%d ' % os.getpid() + (b'\\n' if depth == 2 else b''))\n"
        "time.sleep(60)\n"
    )
    async with running(body) as process:
        with anyio.fail_after(20):
            while len(find_tagged(process.tag)) < 4:
                await process.stdout.read()
        tree = find_tagged(process.tag)
        await process.stop()
        assert gone(tree)


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
async def test_the_exit_is_seen_while_a_grandchild_holds_a_pipe(stream: str) -> None:
    closed = {"stdin": "subprocess.DEVNULL", "stdout": "subprocess.DEVNULL", "stderr": "subprocess.DEVNULL"}
    closed[stream] = "None"
    others = ", ".join(f"{name}={value}" for name, value in closed.items())
    async with running(
        f"c = subprocess.Popen(['sleep', '60'], {others})\n"
        "print(c.pid, flush=True)\n"
        "sys.stdin.readline()\n"
        "os._exit(5)\n"
    ) as process:
        grandchild = int(await line(process))
        await process.write(b"go\n")
        with anyio.fail_after(10):
            assert await process.wait() == ExitStatus(5, None)
        await process.sweep()
        assert gone([grandchild])


async def test_the_exit_is_seen_within_100_ms() -> None:
    """The best of five: the promise is about our code, a turn of a loaded machine's scheduler is not."""
    best = 10.0
    body = READY + "sys.stdin.readline(); os.write(2, repr(time.time()).encode()); os._exit(0)"
    for _ in range(5):
        async with running(body) as process:
            await line(process)
            await process.write(b"go\n")
            await process.wait()
            seen = time.time()
            process.drain_stderr()
            best = min(best, seen - float(process.stderr_tail))
    assert best < 0.1


async def test_the_stderr_tail_keeps_the_end_and_no_more_than_its_bound() -> None:
    async with running("for n in range(20000): sys.stderr.write(f'{n:06d} {\"x\" * 40}\\n')\n") as process:
        with anyio.fail_after(30):
            await process.pump_stderr()
        assert len(process.stderr_tail.encode()) <= STDERR_TAIL_BYTES
        assert process.stderr_tail.endswith(f"019999 {'x' * 40}\n")
        assert len(process.stderr_tail) > STDERR_TAIL_BYTES // 2


async def test_stderr_that_is_not_utf8_is_shown_as_far_as_it_goes() -> None:
    async with running("os.write(2, b'caf\\xc3\\xa9 \\xff')") as process:
        await process.pump_stderr()
        assert process.stderr_tail == "café \ufffd"


async def test_a_child_that_writes_without_end_is_stopped_by_the_pipe_while_nobody_reads() -> None:
    body = (
        "os.set_blocking(1, False)\n"
        "size = 0\n"
        "try:\n"
        "    while True: size += os.write(1, b'x' * 65536)\n"
        "except BlockingIOError: pass\n"
        "os.write(2, b'%d' % size)\n"
        "os.set_blocking(1, True)\n"
        "os.write(1, b'y' * 100)\n"
        "os.write(2, b' more')\n"
        "time.sleep(60)\n"
    )
    async with running(body) as process:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(process.pump_stderr)
                written = int(await stderr(process, ""))
                assert written <= 1024 * 1024
                read = 0
                while read < written + 100:
                    read += len(await process.stdout.read())
                assert read == written + 100
                await stderr(process, " more")
                tasks.cancel_scope.cancel()


async def stderr(process: Process, ending: str) -> str:
    """Wait until its stderr has something that ends so."""
    while not (process.stderr_tail and process.stderr_tail.endswith(ending)):
        await anyio.lowlevel.checkpoint()
    return process.stderr_tail


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_missing_program_is_an_error_with_its_name_and_leaks_nothing(tmp_path: Path) -> None:
    before = descriptors()
    for command in (["/no/such/program"], [str(tmp_path)], ["a\0b"]):
        with pytest.raises(SpawnError, match="can't start"):
            await Process.spawn(command)
    with pytest.raises(SpawnError):
        await Process.spawn(["true"], cwd=tmp_path / "missing")
    assert descriptors() == before


@pytest.mark.parametrize("free", range(12))
async def test_running_out_of_descriptors_is_an_error_that_leaks_nothing(free: int) -> None:
    # once before: what the event loop opens for its first child stays open
    first = await Process.spawn(["true"])
    await first.stop()
    first.close()
    before = descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 40, hard))
    taken: list[int] = []
    tag = f"descriptors-{free}-"
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for fd in taken[-free or len(taken) :]:
            os.close(fd)
            taken.remove(fd)
        try:
            process = await Process.spawn(["sleep", "60"], tag_prefix=tag)
        except SpawnError as error:
            assert "can't start sleep" in str(error)  # noqa: PT017 - with enough of them there is none
        else:
            assert free > 5
            with anyio.fail_after(10):
                await process.stop()
            process.close()
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before
    assert find_tagged(tag) == []


async def test_the_child_has_the_variables_and_the_folder_it_was_given(tmp_path: Path) -> None:
    body = (
        f"print(os.getcwd(), os.environ['MINE'], os.environ['{TAG_VARIABLE}'], os.getsid(0) == os.getpid())"
    )
    process = await Process.spawn(program(body), env={"MINE": "1"}, cwd=tmp_path, tag_prefix="owner-")
    try:
        cwd, mine, tag, leads = (await line(process)).split()
        assert (cwd, mine, leads) == (os.fspath(tmp_path), "1", "True")
        assert tag == process.tag
        assert tag.startswith("owner-")
    finally:
        await process.stop()
        process.close()


async def test_stopping_twice_and_at_once_is_harmless() -> None:
    async with running("signal.signal(15, signal.SIG_IGN); time.sleep(60)") as process:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(process.stop)
        assert await process.stop() == ExitStatus(None, signal.SIGKILL)


async def test_writing_to_a_child_that_has_ended_is_a_broken_pipe() -> None:
    async with running("os.close(0); " + READY + "time.sleep(60)") as process:
        await line(process)
        with pytest.raises(BrokenPipeError):
            await process.write(b"x" * 100)
    with pytest.raises(BrokenPipeError):
        await process.write(b"x")


async def test_draining_ends_though_somebody_who_escaped_the_tree_writes_on() -> None:
    body = (
        "import fcntl, termios\n"
        "c = subprocess.Popen(['yes'], env={}, start_new_session=True)\n"  # no tag, no group
        "while not any(fcntl.ioctl(1, termios.FIONREAD, bytes(4))): pass\n"  # it has begun to write
        "os.write(2, b'%d\\n' % c.pid)\n"
        "sys.stdin.readline(); os._exit(0)\n"
    )
    async with running(body) as process:
        with anyio.fail_after(20):
            while not process.stderr_tail.endswith("\n"):
                process.drain_stderr()
                await anyio.lowlevel.checkpoint()
        escaped = int(process.stderr_tail.split()[0])
        try:
            await process.write(b"go\n")
            await process.wait()
            await process.sweep()
            begun = time.monotonic()
            drained = sum(len(data) for data in process.stdout.read_leftover())
            assert 0 < drained <= 2 * 1024 * 1024
            assert time.monotonic() - begun < 5
        finally:
            os.kill(escaped, signal.SIGKILL)
