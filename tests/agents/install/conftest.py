from __future__ import annotations

import os

import pytest

from tests.agents.conftest import Machine
from tests.agents.install.fake_npm import FakeNpm


@pytest.fixture
def npm(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> FakeNpm:
    """A machine with our node and npm on PATH, and the system's shell."""
    monkeypatch.setenv("PATH", f"{machine.path}:{os.defpath}")
    return FakeNpm(machine.path)
