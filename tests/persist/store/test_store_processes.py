"""What happens to a store around the life of processes: killed, no room, no leave to write."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from tests.persist.store.making import indexes, opened, sequences

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
# A namespace in which the program may mount file systems, without being root outside of it.
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def command(program: str, *arguments: Path) -> list[str]:
    return [sys.executable, "-m", f"tests.persist.store.programs.{program}", *map(str, arguments)]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    script = 'd=$(mktemp -d) && mount -t tmpfs none "$d" && umount "$d" && rmdir "$d"'
    return subprocess.run([*NAMESPACE, "sh", "-c", script], capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(
    not can_mount(), reason="NOT TESTED HERE: this machine lets nobody mount in a user namespace"
)


@pytest.mark.parametrize("commits", [1, 3, 20, 100])
async def test_store_has_every_acknowledged_commit_whole_when_its_process_is_killed(
    commits: int, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    with anyio.fail_after(60):
        async with await anyio.open_process(command("committer", path), cwd=ROOT, env=ENVIRONMENT) as process:
            assert process.stdout is not None
            text = ""
            async for part in TextReceiveStream(process.stdout):
                text += part
                if text.count("\n") >= commits:
                    break
            process.send_signal(signal.SIGKILL)
            async for part in TextReceiveStream(process.stdout):
                text += part
    acknowledged = [list(map(int, line.split())) for line in text.splitlines(True) if line.endswith("\n")]
    assert len(acknowledged) >= commits
    async with opened(path) as store:
        turns = [row.number for row in await store.turns(1, limit=99_999)]
        assert turns == list(range(1, len(turns) + 1))
        assert len(turns) in (len(acknowledged), len(acknowledged) + 1)
        for key in (1, 2):
            stored = await sequences(store, key)
            assert stored == await indexes(store, key) == list(range(1, len(stored) + 1))
            assert len(stored) >= acknowledged[-1][key]
            row = await store.session(f"session-{key}")
            assert row is not None
            assert row.last_sequence == row.last_envelope == len(stored)
            newest = await store.search(f"number{len(stored)}", session_id=f"session-{key}", limit=9)
            assert len(newest) == min(len(stored), 1)


@needs_mount
async def test_store_says_so_and_keeps_commits_whole_when_the_disk_is_full(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        result = await anyio.run_process(
            [*NAMESPACE, *command("full_disk", tmp_path)], check=False, cwd=ROOT, env=ENVIRONMENT
        )
    assert result.returncode == 0, result.stderr.decode()
    refusal, end = result.stdout.decode().splitlines()
    assert refusal.startswith(f"the store '{tmp_path}/store.db' can't grow, nothing was stored")
    assert end == "ok"


@needs_mount
async def test_store_says_so_when_the_file_system_is_read_only(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        result = await anyio.run_process(
            [*NAMESPACE, *command("frozen", tmp_path)], check=False, cwd=ROOT, env=ENVIRONMENT
        )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode().splitlines()[-1] == "ok"
