"""An empty place for agents: no launchers, nothing on PATH, no credentials."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Machine:
    """A temporary home, data folder and PATH."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.data = root / "data"
        self.path = root / "path"
        self.launchers = self.data / "sandbox-agent" / "bin" / "agent_processes"
        for folder in (self.home, self.launchers, self.path):
            folder.mkdir(parents=True)

    def executable(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\nexit 0\n")
        path.chmod(0o755)
        return path

    def launcher(self, agent_id: str) -> Path:
        return self.executable(self.launchers / f"{agent_id}-acp")

    def command(self, name: str) -> Path:
        return self.executable(self.path / name)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_TOKEN")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(machine.home))
    monkeypatch.setenv("XDG_DATA_HOME", str(machine.data))
    monkeypatch.setenv("PATH", str(machine.path))
    return machine
