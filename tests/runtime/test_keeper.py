"""An agent under a keeper: nothing that it has started escapes, whatever it does and whoever is killed."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from sandbox_agent.cgroups import PREFIX
from sandbox_agent.runtime.kept_child import KeptChild
from sandbox_agent.runtime.limits import LimitedGroup, Limits
from sandbox_agent.runtime.process import ExitStatus, Process, SpawnError
from sandbox_agent.runtime.user import find_user
from sandbox_agent.runtime.warden import Warden
from tests.runtime.children import alive, gone, parent_of, program
from tests.support.cgroups import needs_cgroups

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="keepers need subreapers, which only Linux has"),
]

# Descendants that have left the group, the session, the environment and their parent, and ignore SIGTERM.
BODY = """
code = 'import os, signal, time; signal.signal(15, 1); os.write(1, b"%d " % os.getpid()); time.sleep(600)'
for double in (False, True):
    command = ['setsid', 'env', '-i', sys.executable, '-c', code]
    if double:
        command = ['sh', '-c', '"$@" & exit 0', 'sh', *command]
    subprocess.Popen(command, start_new_session=True)
for depth in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.execve(sys.executable, ['x', '-c', code], {})
signal.signal(15, signal.SIG_IGN)
time.sleep(600)
"""
ESCAPED = 4
SERVER = """
import asyncio, sys
from sandbox_agent.runtime.process import Process
from sandbox_agent.runtime.warden import Warden

async def main():
    warden = Warden("keeper-test-server")
    process = await Process.spawn(sys.argv[1:], warden=warden)
    print(process.pid, flush=True)
    while data := await process.stdout.read():
        print(data.decode(), end="", flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def warden() -> AsyncGenerator[Warden]:
    warden = Warden("keeper-test")
    yield warden
    await warden.close()


async def escaped(process: Process) -> list[int]:
    """Return the pids of the descendants when all of them run."""
    text = b""
    with anyio.fail_after(30):
        while len(text.split()) < ESCAPED or not text.endswith(b" "):
            text += await process.stdout.read()
    return [int(pid) for pid in text.split()]


async def test_descendants_that_left_everything_end_with_the_agent(warden: Warden) -> None:
    process = await Process.spawn(program(BODY), warden=warden)
    tree = [process.pid, *await escaped(process)]
    assert all(alive(pid) for pid in tree)
    with anyio.fail_after(10):
        assert await process.stop() == ExitStatus(None, signal.SIGKILL)
    process.close()
    assert gone(tree)


async def test_descendants_that_left_everything_end_when_the_agent_exits(warden: Warden) -> None:
    process = await Process.spawn(program(BODY), warden=warden)
    tree = [process.pid, *await escaped(process)]
    os.kill(process.pid, signal.SIGKILL)
    with anyio.fail_after(10):
        assert await process.wait() == ExitStatus(None, signal.SIGKILL)
        await process.stop()
    process.close()
    assert gone(tree)


async def test_an_agent_goes_on_when_the_warden_is_killed_and_its_tree_ends_with_it(warden: Warden) -> None:
    process = await Process.spawn(program(BODY), warden=warden)
    tree = [process.pid, *await escaped(process)]
    os.kill(parent_of(parent_of(process.pid)), signal.SIGKILL)
    other = await Process.spawn(["cat"], warden=warden)  # by another warden
    assert all(alive(pid) for pid in tree)
    with anyio.fail_after(10):
        await process.stop()
        await other.stop()
    process.close()
    other.close()
    assert gone(tree)


@pytest.mark.parametrize("with_warden", [False, True])
async def test_nothing_is_left_when_the_server_is_killed_also_together_with_its_warden(
    with_warden: bool,
) -> None:
    server = await anyio.open_process([sys.executable, "-c", SERVER, *program(BODY)], stderr=None)
    async with server:
        assert server.stdout is not None
        text = b""
        with anyio.fail_after(30):
            while len(text.split()) < ESCAPED + 1 or not text.endswith(b" "):
                text += await server.stdout.receive()
        tree = [int(pid) for pid in text.split()]
        keeper = parent_of(tree[0])
        warden = parent_of(keeper)
        if with_warden:
            os.kill(warden, signal.SIGKILL)
        server.kill()
        await server.wait()
        assert gone([*tree, keeper, warden])


async def test_an_agent_ends_when_its_keeper_is_killed(warden: Warden) -> None:
    process = await Process.spawn(program(BODY), warden=warden)
    tree = [process.pid, *await escaped(process)]
    os.kill(parent_of(process.pid), signal.SIGKILL)
    with anyio.fail_after(10):
        assert await process.wait() == ExitStatus(None, signal.SIGKILL)
        await process.stop()
    process.close()
    assert gone(tree)


async def test_a_keeper_that_hangs_does_not_hold_up_the_end_of_its_agent(warden: Warden) -> None:
    process = await Process.spawn(program(BODY), warden=warden)
    tree = [process.pid, *await escaped(process)]
    os.kill(parent_of(process.pid), signal.SIGSTOP)
    with anyio.fail_after(10):
        assert await process.stop() == ExitStatus(None, signal.SIGKILL)
    process.close()
    assert gone(tree)


# Kills a child and a grandchild which has lost its parent.
WITHOUT_LISTS = """
import os, subprocess, sys, time
from sandbox_agent.runtime import keeper
assert keeper._HAS_LISTS and keeper.become_subreaper()
child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; exec sleep 600"], stdout=subprocess.PIPE)
grandchild = int(child.stdout.readline())
for keeper._HAS_LISTS in (True, False):
    assert keeper.children_of(os.getpid()) == [child.pid]
    assert keeper.children_of(child.pid) == [grandchild]
keeper.kill_children(())
assert keeper.children_of(os.getpid()) == []
print(child.pid, grandchild)
"""


async def test_children_are_found_on_a_kernel_that_does_not_list_them() -> None:
    done = await anyio.run_process([sys.executable, "-c", WITHOUT_LISTS], stderr=None)
    assert gone(map(int, done.stdout.split()))


async def test_a_command_that_cannot_be_started_is_an_error(warden: Warden, tmp_path: Path) -> None:
    for command in (["/no/such/program"], [str(tmp_path)], ["a\0b"]):
        with pytest.raises(SpawnError, match="can't start"):
            await Process.spawn(command, warden=warden)


async def test_a_system_without_room_for_another_process_is_not_a_warden_that_hangs(
    warden: Warden, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await Process.spawn(["cat"], warden=warden)
    receive = KeptChild.receive

    def refuse(child: KeptChild, _message: object) -> None:
        receive(child, {"errno": errno.EAGAIN})

    with monkeypatch.context() as patch:
        # As the keeper sends it when a fork fails.
        patch.setattr(KeptChild, "receive", refuse)
        with pytest.raises(SpawnError, match=os.strerror(errno.EAGAIN)):
            await Process.spawn(["true"], warden=warden)
    second = await Process.spawn(["cat"], warden=warden)
    assert parent_of(parent_of(first.pid)) == parent_of(parent_of(second.pid))  # no other warden
    for process in (first, second):
        await process.stop()
        process.close()


async def test_an_agent_has_default_signals_and_no_descriptor_of_the_warden(warden: Warden) -> None:
    body = "print(signal.getsignal(15) == signal.getsignal(1) == signal.SIG_DFL, os.listdir('/proc/self/fd'))"
    process = await Process.spawn(program(body), warden=warden)
    with anyio.fail_after(10):
        assert (await process.stdout.read()).decode().strip() == "True ['0', '1', '2', '3']"
        assert await process.stop() == ExitStatus(0, None)
    process.close()


@needs_cgroups
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
async def test_an_agent_of_another_user_is_in_its_control_group_before_it_runs(warden: Warden) -> None:
    limits = Limits(memory_bytes=100 << 20, processes=2)
    group = limits.create_group(f"{PREFIX}test-{secrets.token_hex(8)}")
    try:
        command = ["/bin/sh", "-c", "id -u; exec cat /proc/self/cgroup"]
        process = await Process.spawn(command, warden=warden, cwd="/", user=find_user("nobody"), group=group)
        with anyio.fail_after(10):
            text = ""
            while data := await process.stdout.read():
                text += data.decode()
            assert await process.stop() == ExitStatus(0, None)
        process.close()
        assert text.startswith("65534\n")
        assert text.count(f"/{group.folders[0].name}\n") == len(group.folders) == len(limits.find_parents())
    finally:
        group.remove()


async def test_an_agent_whose_control_group_is_gone_is_not_started(warden: Warden) -> None:
    group = LimitedGroup([Path("/no/such/group")], 0)
    with pytest.raises(SpawnError, match="can't start"):
        await Process.spawn(["cat"], warden=warden, group=group)


async def test_a_warden_that_hangs_is_replaced_when_an_agent_is_started(
    warden: Warden, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await Process.spawn(["cat"], warden=warden)
    hanging = parent_of(parent_of(first.pid))
    os.kill(hanging, signal.SIGSTOP)
    monkeypatch.setattr("sandbox_agent.runtime.warden.START_SECONDS", 3)
    with anyio.fail_after(30):
        second = await Process.spawn(["cat"], warden=warden)
        for process in (first, second):
            await process.stop()
            process.close()
    assert gone([hanging, first.pid, second.pid])


async def run(warden: Warden, script: str, *, lingers: bool = False) -> tuple[Process, int, list[int]]:
    """Run a shell script to its end; return its process, its keeper, and the numbers that it has printed."""
    process = await Process.spawn(["sh", "-c", f"echo $PPID; {script}"], warden=warden, lingers=lingers)
    with anyio.fail_after(10):
        await process.wait()
    keeper, *numbers = map(int, b"".join(process.stdout.read_leftover()).split())
    process.close()
    return process, keeper, numbers


async def test_a_keeper_starts_another_command_when_nothing_is_left_of_the_one_before(warden: Warden) -> None:
    first, keeper, left = await run(warden, "setsid sleep 600 & echo $!")
    assert gone(left)
    second = await Process.spawn(program(BODY), warden=warden)
    assert parent_of(second.pid) == keeper
    tree = [second.pid, *await escaped(second)]
    await first.kill()  # not the second
    await first.stop()
    assert all(alive(pid) for pid in tree)
    with anyio.fail_after(10):
        assert await second.stop() == ExitStatus(None, signal.SIGKILL)
    second.close()
    assert gone(tree)
    assert (await run(warden, ":"))[1] == keeper


async def test_a_keeper_of_which_something_lingers_starts_no_other_command(warden: Warden) -> None:
    first, keeper, left = await run(warden, "setsid sleep 600 & echo $!", lingers=True)
    assert first.lingers
    _, other, _ = await run(warden, ":")
    assert other != keeper
    assert all(alive(pid) for pid in left)
    await first.kill()
    with anyio.fail_after(10):
        await first.wait_gone()
    assert gone(left)
    assert (await run(warden, ":"))[1] == keeper  # the one that was used last


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_keeper_that_was_killed_or_stopped_while_it_had_nothing_to_do_is_replaced(
    warden: Warden, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    _, keeper, _ = await run(warden, ":")
    os.kill(keeper, signum)
    monkeypatch.setattr("sandbox_agent.runtime.warden.START_SECONDS", 3)
    _, other, _ = await run(warden, ":")
    assert other != keeper
    assert gone([keeper])


async def test_keepers_that_have_nothing_to_do_end_when_time_has_passed(
    warden: Warden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.runtime.warden.IDLE_SECONDS", 0.05)
    _, keeper, _ = await run(warden, ":")
    with anyio.fail_after(10):
        while alive(keeper):
            await anyio.lowlevel.checkpoint()
    assert (await run(warden, ":"))[1] != keeper


async def test_keepers_of_a_warden_that_was_killed_are_not_used_again(warden: Warden) -> None:
    idle, busy = await run(warden, ":"), await Process.spawn(["cat"], warden=warden)
    other = await Process.spawn(["cat"], warden=warden)
    keepers = {idle[1], parent_of(busy.pid), parent_of(other.pid)}
    assert len(keepers) == 2
    os.kill(parent_of(parent_of(busy.pid)), signal.SIGKILL)
    await other.stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(warden.run)
        with anyio.fail_after(10):
            while (await run(warden, ":"))[1] in keepers:
                pass
            await busy.stop()
            assert (await run(warden, ":"))[1] not in keepers
        await warden.close()
    for process in (busy, other):
        process.close()
    assert gone(keepers)
