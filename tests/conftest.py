"""Fixtures that every test may use, and hooks of the whole session."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

from tests.support.leaks import (
    checked_loop,
    pytest_collection,
    pytest_collection_finish,
    pytest_runtest_teardown,
)
from tests.support.postgres import own_postgres, postgres, postgres_dsn
from tests.support.redis import foreign_redis, redis_server, redis_url
from tests.support.requiring import pytest_make_collect_report, pytest_runtest_makereport
from tests.support.signals import restore_signals
from tests.support.trust import share_authorities
from tests.support.workers import worker_count

__all__ = [
    "anyio_backend",
    "foreign_redis",
    "own_postgres",
    "postgres",
    "postgres_dsn",
    "pytest_collection",
    "pytest_collection_finish",
    "pytest_configure",
    "pytest_itemcollected",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
    "pytest_runtest_teardown",
    "pytest_xdist_auto_num_workers",
    "redis_server",
    "redis_url",
]

pytest_plugins = ("pytester",)

# With bytecode files, the Python processes that tests start don't compile the package each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# An example that takes long on a loaded machine is no failure.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_configure() -> None:
    restore_signals()
    share_authorities()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Move the parameters that ``soak_with`` names to the group soak."""
    parameters = item.name.partition("[")[2].rstrip("]").split("-")
    if any(name in parameters for mark in item.iter_markers("soak_with") for name in mark.args):
        item.add_marker(pytest.mark.soak)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return worker_count()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The server and the SDK run on asyncio."""
    return "asyncio", {"loop_factory": checked_loop}
