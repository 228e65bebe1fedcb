"""Fixtures: the command as people run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.leftovers import Leftovers
from tests.support.servers import put_launcher

SECONDS = 60
COMMAND = [sys.executable, "-m", "sandbox_agent.cli.main"]


class Shell:
    """Runs the command in a folder of its own, whose ``claude`` is the stopping agent.

    Attributes:
        folder: the current folder of what it runs.
        env: the environment.
        leftovers: finds what it left running.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leftovers = Leftovers()
        self.env = {**os.environ, **self.leftovers.env, "XDG_DATA_HOME": str(folder / "data")}
        self.env["SANDBOX_AGENT_REQUIRE_PREINSTALL"] = "1"
        for name in ("NO_COLOR", "SANDBOX_AGENT_STORE", "SANDBOX_AGENT_TOKEN"):
            self.env.pop(name, None)
        agent = Path(__file__).with_name("stopping_agent.py")
        put_launcher(folder / "data", "claude", [sys.executable, str(agent)])

    def run(
        self, *words: str | Path, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            cwd=self.folder,
            env={**self.env, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start it with pipes."""
        return subprocess.Popen(
            [*COMMAND, *map(str, words)],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """The command; nothing that it started outlives the test."""
    shell = Shell(tmp_path)
    yield shell
    shell.leftovers.wait()
