"""Memory and processor time of trees of processes, measured on real ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sandbox_agent.runtime import tree_usage
from sandbox_agent.runtime.tree_usage import read_usage

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc of Linux")

MIB = 1024 * 1024
TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
# Holds 40 MiB, works for a while, and starts a child that holds 30 MiB in a session of its own.
PARENT = """
import subprocess, sys, time
held = bytearray(b"x") * (40 << 20)
while time.process_time() < 0.3:
    pass
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=-1, stdout=-1, start_new_session=True)
child.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
"""
CHILD = 'import sys; held = bytearray(b"x") * (30 << 20); print("ready", flush=True); sys.stdin.read()'


def test_a_tree_is_counted_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_usage, "KEEPS", False)
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        usage = read_usage([parent.pid])[parent.pid]
        parent.communicate()
    assert usage.processes == 2
    assert 70 * MIB <= usage.memory_bytes < 150 * MIB
    # The kernel counts time in user mode and time in the kernel in whole ticks, each rounded down.
    assert 0.3 - 4 * TICK <= usage.cpu_seconds < 20


def test_a_process_that_has_ended_is_left_out() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    assert read_usage([ended.pid]) == {}


def test_nothing_is_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> list[str]:
        raise FileNotFoundError

    monkeypatch.setattr(os, "listdir", fail)
    assert read_usage([os.getpid()]) == {}
