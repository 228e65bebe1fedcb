"""Fixtures that every test may use."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The server and the SDK run on asyncio."""
    return "asyncio"
