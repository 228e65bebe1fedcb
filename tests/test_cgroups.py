"""Control groups: the kernel holds their limits, and they leave nothing. On this machine's groups."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from sandbox_agent import cgroups
from sandbox_agent.cgroups import PREFIX, Cgroup, CgroupError, create_cgroup, find_parents, remove_cgroups
from tests.support.cgroups import needs_cgroups

ALLOCATE = "x = bytearray(200 << 20); print('allocated')"
# Each process forks for ever; the errors are those of forks beyond the limit.
BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.001)
"""


@pytest.fixture
def name() -> Generator[str]:
    name = f"{PREFIX}test-{secrets.token_hex(8)}"
    yield name
    assert not [
        found
        for parent in set(find_parents(["memory", "pids"]).values())
        for found in parent.glob(f"{name}*")
    ]


def run(group: Cgroup, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        group.wrap([sys.executable, "-c", code]), capture_output=True, text=True, check=False, timeout=60
    )


@needs_cgroups
def test_a_process_with_too_much_memory_is_killed_and_one_with_less_is_not(name: str) -> None:
    group = create_cgroup(name, memory_bytes=100 << 20)
    try:
        assert run(group, "print('small')").stdout == "small\n"
        assert group.memory_kills == 0
        assert run(group, ALLOCATE).returncode == -9
        assert group.memory_kills == 1
    finally:
        group.remove()


@needs_cgroups
def test_a_fork_bomb_has_no_more_than_its_tasks_and_is_killed_whole(name: str) -> None:
    group = create_cgroup(name, tasks=20)
    with subprocess.Popen(group.wrap([sys.executable, "-c", BOMB])) as bomb:
        folder = group.folders[0]
        while int((folder / "pids.current").read_text()) < 20:
            assert bomb.poll() is None
        assert len((folder / "cgroup.procs").read_text().split()) <= 20
        group.kill()
        assert bomb.wait(30) == -9
        assert (folder / "cgroup.procs").read_text() == ""
        group.remove()


@needs_cgroups
def test_a_limit_of_processors_is_set(name: str) -> None:
    group = create_cgroup(name, cpus=0.5)
    try:
        files = [folder / file for folder in group.folders for file in ("cpu.max", "cpu.cfs_quota_us")]
        assert [path.read_text().split()[0] for path in files if path.exists()] == ["50000"]
    finally:
        group.remove()


@needs_cgroups
def test_groups_that_were_left_are_removed_with_their_members_and_others_are_not(name: str) -> None:
    left, other = create_cgroup(f"{name}-a", tasks=20), create_cgroup(f"{name}2-b", tasks=20)
    parents = [folder.parent for folder in left.folders]
    try:
        with subprocess.Popen(left.wrap(["sleep", "600"])) as member:
            while str(member.pid) not in (left.folders[0] / "cgroup.procs").read_text().split():
                assert member.poll() is None
            assert remove_cgroups(parents, f"{name}-") == 1
            assert member.wait(30) == -9
        assert not any(folder.exists() for folder in left.folders)
        assert all(folder.exists() for folder in other.folders)
        assert remove_cgroups(parents, PREFIX) == 0  # not those of all servers
    finally:
        other.remove()


def test_an_unknown_controller_is_an_error() -> None:
    with pytest.raises(CgroupError):
        find_parents(["no-such-controller"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_user_who_may_not_write_gets_an_error() -> None:
    code = (
        "import os\n"
        "from sandbox_agent.cgroups import *\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: create_cgroup(PREFIX + 'refused', tasks=9)\n"
        "except CgroupError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "not writable" in done.stdout or "has no controller" in done.stdout


def version_2(folder: Path, *, enabled: str, memory: str | None) -> Path:
    """Make folders with the files of version 2, which this machine may not have, and return the own group."""
    own = folder / "own"
    own.mkdir()
    (own / "cgroup.type").write_text("domain\n")
    (folder / "cgroup.subtree_control").write_text(enabled)
    if memory is not None:
        (own / "memory.max").write_text(memory)
    return own


def test_in_version_2_groups_are_created_beside_the_own_one_if_that_has_no_limit(tmp_path: Path) -> None:
    own = version_2(tmp_path, enabled="memory pids\n", memory="max\n")
    assert cgroups._parent_2(own, "pids") == tmp_path  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(CgroupError, match="no controller 'cpu'"):
        cgroups._parent_2(own, "cpu")  # pyright: ignore[reportPrivateUsage]
    (own / "memory.max").write_text("1000000\n")
    with pytest.raises(CgroupError, match="limit of memory that would not apply"):
        cgroups._parent_2(own, "pids")  # pyright: ignore[reportPrivateUsage]
