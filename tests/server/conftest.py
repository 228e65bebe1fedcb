"""One server for the tests that only talk to it; the others start their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator

import pytest

from tests.support.servers import ServerProcess, our_server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """A server without a token."""
    with our_server(tmp_path_factory.mktemp("server")) as running:
        yield running


_numbers = itertools.count(1)


@pytest.fixture
def fresh() -> Callable[[], str]:
    """Names server ids that nobody used before."""
    return lambda: f"id-{next(_numbers)}"
