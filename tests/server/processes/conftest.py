"""A server whose processes the tests are about, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import pytest

from tests.server.processes.talk import Talk
from tests.support.servers import ServerProcess, our_server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """A server with processes."""
    with our_server(tmp_path_factory.mktemp("processes")) as running:
        yield running


@pytest.fixture
async def talk(server: ServerProcess) -> AsyncGenerator[Talk]:
    """A client of the server. Its limits are the defaults again when the test ends."""
    async with Talk(server.url) as found:
        before = (await found.client.get("/v1/processes/config")).json()
        yield found
        await found.configure(**before)
