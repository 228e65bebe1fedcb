"""Fixtures of the recorder's tests."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from .parts import FaultyStore, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[FaultyStore]:
    async with open_store(tmp_path / "store.db") as opened:
        yield opened
