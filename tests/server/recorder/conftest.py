"""Fixtures of the recorder's tests."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from .parts import FaultyStore, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[FaultyStore]:
    async with open_store(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages outside a turn stay open: on a busy machine the tests take longer than these may."""
    monkeypatch.setattr("sandbox_agent.server.recorder.worker.LATE_SECONDS", 60)
