"""A server whose home is a folder of the test."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import httpx2
import pytest

from tests.support.servers import ServerProcess, our_server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[ServerProcess, Path]]:
    """A server that gives access to all files, and its home."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "home").mkdir()
    with our_server(folder, env={"HOME": str(folder / "home")}) as running:
        yield running, folder / "home"


@pytest.fixture
def home(server: tuple[ServerProcess, Path], request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own, below the server's home."""
    path = server[1] / str(abs(hash(request.node.nodeid)))
    path.mkdir()
    return path


@pytest.fixture
async def client(server: tuple[ServerProcess, Path]) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=server[0].url, timeout=30) as found:
        yield found
