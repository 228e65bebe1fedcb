"""Version 2 of control groups: the tests of limits run in a Linux of their own, whose kernel has only that.

The machine's own kernel may have version 1, or not let tests create groups. User-mode Linux is a kernel that
runs as a process, here with the machine's files, read only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandboxes

ROOT = Path(__file__).parents[2]
KERNEL = shutil.which("linux.uml")
SECONDS = 400
MEMORY = "tests/server/test_agent_limits.py::test_an_agent_that_uses_too_much_memory_is_ended_with_the_reason"
# Memory and processes of an agent and its tools, and what a killed server leaves. The others take longer.
TESTS = (
    "tests/test_cgroups.py",
    "tests/server/test_agent_limits.py::test_what_an_agent_starts_is_limited_by_the_kernel_and_others_go_on",
    "tests/server/test_agent_limits.py::test_groups_of_a_server_that_was_killed_are_removed_at_the_next_start",
    f"{MEMORY}[by the kernel]",
)
# The first process of that Linux. The server has a group beside which it may create others, as in a service.
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
echo '+memory +pids +cpu' > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/service
echo $$ > /sys/fs/cgroup/service/cgroup.procs
echo "groups: $(cat /proc/self/cgroup)"
cd {root}
export HOME=/dev/shm TMPDIR=/dev/shm PATH={path} REQUIRE_ALL=1 PYTHONDONTWRITEBYTECODE=1
{python} -m pytest -p no:cacheprovider -n0 -q {tests} 2>&1
echo "status: $?"
echo o > /proc/sysrq-trigger
sleep 60
"""


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.skipif(KERNEL is None, reason="needs linux.uml of Debian's user-mode-linux")
def test_version_2_limits_memory_and_processes_of_agents(tmp_path: Path) -> None:
    assert KERNEL is not None
    tests = " ".join(f"'{test}'" for test in TESTS)
    path = os.environ["PATH"]
    script = INIT.format(root=ROOT, path=path, python=sys.executable, tests=tests)
    init = tmp_path / "init"
    init.write_text(script)
    init.chmod(0o755)
    kernel = [KERNEL, "mem=1536M", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"]
    options = [f"uml_dir={tmp_path}", "con=null", "con0=null,fd:1", "quiet"]
    with subprocess.Popen(
        [*kernel, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
    assert "groups: 0::/service" in output, output
    assert "status: 0" in output, output
