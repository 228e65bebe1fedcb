"""Finding what a server left behind: every process that inherited its environment."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread

__all__ = ["Leftovers"]

VARIABLE = "SANDBOX_AGENT_TEST_MARK"
# What a server may take to end an agent that it was told to end.
GONE_SECONDS = 10.0


class Leftovers:
    """Marks a server's environment and finds the processes that carry the mark, orphans included.

    Attributes:
        env: what to add to the server's environment.
    """

    def __init__(self) -> None:
        self._mark = f"{VARIABLE}={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        # Without the second one, the environment of a server is hidden if the tests are not root's.
        self.env = {name: value, "SANDBOX_AGENT_ALLOW_DEBUGGER": "1"}

    def find(self, *words: str) -> dict[int, str]:
        """Return the marked processes by pid with their command lines; with words: those that have one."""
        found = self._linux() if sys.platform == "linux" else self._elsewhere()
        return {
            pid: command
            for pid, command in found.items()
            if not words or any(word in command for word in words)
        }

    def wait(self, *words: str) -> None:
        """Wait until no marked process (of those with one of the words) is left.

        Raises:
            AssertionError: some are still there; the message lists them.
        """
        deadline = time.monotonic() + GONE_SECONDS
        while found := self.find(*words):
            assert time.monotonic() < deadline, f"still running after {GONE_SECONDS} s: {found}"
            _wait_for_exit(next(iter(found)))

    async def gone(self, *words: str) -> None:
        """Wait beside the event loop."""
        await anyio.to_thread.run_sync(lambda: self.wait(*words))

    def _linux(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                marked = self._mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended meanwhile, or it is somebody else's
            # A zombie has an empty environment and is not found: it waits for its parent only.
            if marked:
                found[int(folder.name)] = command
        return found

    def _elsewhere(self) -> dict[int, str]:
        listing = subprocess.run(
            ["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, check=True
        )
        rows = [line.strip().partition(" ") for line in listing.stdout.splitlines() if self._mark in line]
        return {int(pid): command.replace(self._mark, "") for pid, _, command in rows}


def _wait_for_exit(pid: int) -> None:
    """Return when the process has ended, or after a short while where the system can't tell."""
    opener: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
    if opener is None:
        select.select([], [], [], 0.05)
        return
    try:
        descriptor = opener(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], GONE_SECONDS)
    finally:
        os.close(descriptor)
