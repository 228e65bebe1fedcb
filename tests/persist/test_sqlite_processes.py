"""What happens to a store around the life of processes: killed, at once, ended without closing, no room."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import all_events

pytestmark = pytest.mark.anyio

PROGRAMS = Path(__file__).parent / "programs"
# A namespace in which the program may mount file systems, without being root outside of it.
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def command(program: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(PROGRAMS / f"{program}.py"), *map(str, arguments)]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    script = 'd=$(mktemp -d) && mount -t tmpfs none "$d" && umount "$d" && rmdir "$d"'
    return subprocess.run([*NAMESPACE, "sh", "-c", script], capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(
    not can_mount(), reason="NOT TESTED HERE: this machine lets nobody mount in a user namespace"
)


@pytest.mark.parametrize("batches", [1, 5, 40])
async def test_store_has_every_acknowledged_event_when_the_writer_is_killed(
    batches: int, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    acknowledged: list[str] = []
    with anyio.fail_after(60):
        async with await anyio.open_process(command("writer", path, "s", "w", "0")) as process:
            assert process.stdout is not None
            text = ""
            async for part in TextReceiveStream(process.stdout):
                text += part
                if text.count("\n") >= batches:
                    break
            process.send_signal(signal.SIGKILL)
            async for part in TextReceiveStream(process.stdout):
                text += part
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            acknowledged += line.split()
    assert len(acknowledged) >= 3 * batches
    driver = SQLiteSessionPersistDriver(path)
    stored = [f"{event.id}={event.event_index}" for event in await all_events(driver, "s")]
    await driver.close()
    assert stored[: len(acknowledged)] == acknowledged
    # A batch is kept whole or not at all.
    assert len(stored) % 3 == 0


async def test_two_processes_append_to_one_session_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    outputs: dict[str, str] = {}

    async def write(name: str) -> None:
        result = await anyio.run_process(command("writer", path, "s", name, "40"))
        outputs[name] = result.stdout.decode()

    # Both also make the file at once.
    with anyio.fail_after(100):
        async with anyio.create_task_group() as group:
            for name in ("a", "b"):
                group.start_soon(write, name)
    driver = SQLiteSessionPersistDriver(path)
    events = await all_events(driver, "s")
    await driver.close()
    assert [event.event_index for event in events] == list(range(1, 241))
    for name in ("a", "b"):
        mine = [f"{one.id}={one.event_index}" for one in events if one.id.startswith(f"{name}-")]
        assert mine == outputs[name].split()


async def test_interpreter_ends_and_flushes_when_a_driver_was_not_closed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with anyio.fail_after(20):
        result = await anyio.run_process(command("forgetful", path))
    assert result.stdout == b"end of main\n"
    assert result.stderr == b""
    driver = SQLiteSessionPersistDriver(path)
    assert [event.id for event in await all_events(driver, "s")] == ["acknowledged", "accepted"]
    await driver.close()


@needs_mount
async def test_driver_says_so_and_loses_nothing_when_the_disk_is_full(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        result = await anyio.run_process([*NAMESPACE, *command("small_disk", tmp_path)], check=False)
    assert result.returncode == 0, result.stderr.decode()
    refusal, end = result.stdout.decode().splitlines()
    assert refusal.startswith(f"the store '{tmp_path}/store.db' can't grow, nothing was stored")
    assert end.startswith("ok")


@needs_mount
async def test_driver_says_so_when_the_file_system_is_read_only(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        result = await anyio.run_process([*NAMESPACE, *command("read_only", tmp_path)], check=False)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode().splitlines()[-1] == "ok"
