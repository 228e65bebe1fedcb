"""Databases for the server's store, of either kind, that a test may kill and start again."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer

__all__ = ["Database", "database"]

# It would be seen wherever it is shown.
PASSWORD = "xylophagous-zwitterion"


class Database(Protocol):
    """A database server of the test's own, which runs."""

    @property
    def url(self) -> str:
        """What --store is given."""
        ...

    @property
    def password(self) -> str:
        """The password in the URL."""
        ...

    def kill(self) -> None:
        """SIGKILL it."""
        ...

    def start(self) -> None:
        """Start it again with its data."""
        ...

    def pause(self) -> None:
        """SIGSTOP it: its connections stay open, and nothing is answered."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...


class _Postgres:
    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url: str = server.create_database()
        self.password: str = server.password

    def kill(self) -> None:
        self._server.kill()

    def start(self) -> None:
        self._server.start()

    def pause(self) -> None:
        self._server.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._server.signal_all(signal.SIGCONT)


class _Redis:
    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.url: str = server.url()
        self.password: str = PASSWORD

    def kill(self) -> None:
        self._server.kill()

    def start(self) -> None:
        self._server.start()

    def pause(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._server.pid, signal.SIGCONT)


@contextmanager
def _running(kind: str, folder: Path) -> Generator[Database]:
    if kind == "postgres":
        with PostgresServer() as server:
            yield _Postgres(server)
    else:
        folder.mkdir()
        with RedisServer(folder, durable=True, password=PASSWORD) as server:
            yield _Redis(server)


@pytest.fixture(params=["postgres", "redis"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Database]:
    """A database of either kind."""
    with _running(request.param, tmp_path / "database") as running:
        yield running
