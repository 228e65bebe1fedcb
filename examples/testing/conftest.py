"""The scripted agent takes the place of the agent that the app names."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def sandbox_agent_ids() -> list[str]:
    return ["claude"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
