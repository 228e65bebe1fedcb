"""Fixtures: a server for the snippets, where the pages say one is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import ServerProcess, our_server


@pytest.fixture(scope="session")
def docs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without a token."""
    with our_server(tmp_path_factory.mktemp("docs")) as server:
        yield server
