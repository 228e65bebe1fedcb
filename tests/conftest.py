"""Fixtures that every test may use."""

import pytest

from tests.support.postgres import own_postgres, postgres, postgres_dsn
from tests.support.redis import foreign_redis, redis_server, redis_url

__all__ = [
    "anyio_backend",
    "foreign_redis",
    "own_postgres",
    "postgres",
    "postgres_dsn",
    "redis_server",
    "redis_url",
]


@pytest.fixture
def anyio_backend() -> str:
    """The server and the SDK run on asyncio."""
    return "asyncio"
