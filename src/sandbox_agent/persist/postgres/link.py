"""Connections to a PostgreSQL server: opened on demand, with timeouts, directly or behind a pooler.

What is used of asyncpg is typed here, and this is the one place that imports it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Final, Protocol, TypeVar

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.extras import require_extra
from sandbox_agent.persist.loops import OneLoop
from sandbox_agent.persist.postgres.errors import describe_target, explain_postgres, is_lost
from sandbox_agent.persist.postgres.options import read_options

_EXTRA = ("PostgreSQL", "postgres", "asyncpg")

T = TypeVar("T")
# A row of a result: its values by position.
Row = Sequence[Any]

# To open a connection, or to get one of the pool.
CONNECT_SECONDS: Final = 10.0
# To give one back whose statement was cancelled; it is closed if the server does not confirm that by then.
_RELEASE_SECONDS: Final = 2.0
# One call's statements.
DEFAULT_TIMEOUT: Final = 30.0
DEFAULT_MAX_SIZE: Final = 8
# Closing waits so long for calls that are on their way.
_CLOSE_SECONDS: Final = 5.0
_CACHED_STATEMENTS: Final = 100
# A pool of the user's that has fewer connections is left to the calls.
_LEAST_POOL: Final = 2


class Connection(Protocol):
    """``asyncpg.Connection``, or a pool's proxy of one."""

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        """Run statements and return the last one's status; without values several may be joined by ;."""
        ...

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Row]:
        """Run a statement and return its rows."""
        ...

    async def fetchval(self, query: str, *args: object, timeout: float | None = None) -> Any:
        """Run a statement and return the first value of its first row, or None."""
        ...

    def get_server_pid(self) -> int:
        """Return the process id that the server named at the log-in."""
        ...

    def is_closed(self) -> bool:
        """Tell whether the connection is closed."""
        ...

    async def add_listener(self, channel: str, callback: Callable[[Any, int, str, str], None], /) -> None:
        """LISTEN; the callback gets (connection, pid, channel, payload)."""
        ...

    def add_termination_listener(self, callback: Callable[[Any], None], /) -> None:
        """Call back when the connection has ended."""
        ...

    def remove_termination_listener(self, callback: Callable[[Any], None], /) -> None:
        """Unregister the callback."""
        ...

    def terminate(self) -> None:
        """Close the connection without waiting for the server; a pool opens another one in its place."""
        ...


class Pool(Protocol):
    """``asyncpg.Pool``."""

    def acquire(self, *, timeout: float | None = None) -> Any:
        """Return what can be awaited or entered for a connection."""
        ...

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give a connection back."""
        ...

    async def close(self) -> None:
        """Close all connections after their work."""
        ...

    async def expire_connections(self) -> None:
        """Have every connection replaced before its next use."""
        ...

    def terminate(self) -> None:
        """Close all connections at once."""
        ...

    def get_max_size(self) -> int:
        """Return how many connections it may open."""
        ...


class PostgresLink:
    """A pool of connections: its own, opened by the first call, or one that was handed in.

    Behind a pool that gives each transaction another connection (pgbouncer, transaction pooling) it keeps
    no prepared statements and puts every call into a transaction. It finds that out by itself: such a
    pool names another process id at the log-in than the server's.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``; None reads libpq's
            environment variables (PGHOST, PGUSER, …). Its options are read by ``read_options``.
        pool: an asyncpg pool, which is used and never closed.
        max_size: connections of its own pool, at most.
        timeout: seconds that one call may take once it has a connection.
        statement_cache_size: prepared statements kept by a connection; 0: behind a transaction pool;
            None: found out.
        prepare: makes the tables; run in a transaction before the first call, again after a failure.
        name: what the server calls the connections (``application_name``).

    Attributes:
        target: host, port and database, for messages.
        pooled: whether every call runs in a transaction; known after the first call.
    """

    def __init__(
        self,
        connection_string: str | None,
        *,
        pool: Pool | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        timeout: float = DEFAULT_TIMEOUT,
        statement_cache_size: int | None = None,
        prepare: Callable[[Connection], Awaitable[object]],
        name: str = "sandbox-agent",
    ) -> None:
        if connection_string is not None and pool is not None:
            raise ValueError("give a connection string or a pool, not both")
        require_extra(*_EXTRA)
        options = read_options(connection_string, name)
        self._dsn = options.connection_string
        self.target: str = describe_target(None if pool is not None else self._dsn or "")
        self.pooled: bool = options.pooled or statement_cache_size == 0
        self._given = pool
        self._own: Pool | None = None
        self._max_size = max_size
        self._timeout = timeout
        self._cache = _CACHED_STATEMENTS if statement_cache_size is None else statement_cache_size
        self._prepare = prepare
        self._arguments = options.arguments
        self._connect_timeout = options.connect_timeout or CONNECT_SECONDS
        self._opening = anyio.Lock()
        self._loop = OneLoop()
        self._ready = False
        self._closed = False

    async def run(
        self,
        work: Callable[[Connection], Awaitable[T]],
        /,
        *,
        transaction: bool = False,
        session_id: str | None = None,
    ) -> T:
        """Run a statement, or several in a transaction (READ COMMITTED).

        It is run again, once, if the connection broke off, so the work must bear to be done twice.

        Raises:
            PersistError: the server can't be reached, refused, or took too long.
        """
        try:
            await self._get_ready()
            transaction = transaction or self.pooled
            try:
                return await self._attempt(work, transaction=transaction)
            except PersistError as error:
                if error.__cause__ is None or not is_lost(error.__cause__) or self._closed:
                    raise
            if self._own is not None:
                # The others of the pool are as old.
                await self._own.expire_connections()
            return await self._attempt(work, transaction=transaction)
        except PersistError as error:
            error.session_id = error.session_id or session_id
            raise

    async def connect(self) -> Connection:
        """Return a connection that the caller keeps, and terminates: one beside the own pool, if it has one.

        Raises:
            PersistError: the server can't be reached or refuses.
        """
        await self._get_ready()
        asyncpg = load_asyncpg()
        with self.explained(reached=False):
            if self._given is not None:
                return await self._given.acquire(timeout=self._connect_timeout)
            return await asyncpg.connect(
                self._dsn, timeout=self._connect_timeout, statement_cache_size=0, **self._arguments
            )

    @property
    def can_connect(self) -> bool:
        """Whether a connection can be spared for ``connect``."""
        return self._given is None or self._given.get_max_size() >= _LEAST_POOL

    @contextlib.contextmanager
    def explained(self, *, reached: bool = True) -> Generator[None]:
        """Raise PersistError for what asyncpg and the socket raise inside.

        Args:
            reached: whether the errors are those of a connection that was there.
        """
        try:
            yield
        except self._failures() as error:
            explained = explain_postgres(error, self.target, reached=reached, connection_string=self._dsn)
            # Of a connection that could not be made the cause may show the connection string.
            raise explained from (error if reached else None)

    async def close(self) -> None:
        """Close what was opened here. Safe to call twice."""
        self._closed = True
        pool, self._own = self._own, None
        if pool is not None and self._loop.is_another:
            # Most likely one that has ended, and its connections with it.
            with contextlib.suppress(RuntimeError):
                pool.terminate()
        elif pool is not None:
            with anyio.move_on_after(_CLOSE_SECONDS) as scope:
                await pool.close()
            if scope.cancelled_caught:
                pool.terminate()

    @property
    def is_elsewhere(self) -> bool:
        """Whether it belongs to another event loop than the running one."""
        return self._loop.is_another

    def refuse_unusable(self) -> None:
        """Raise PersistError once it was closed, and in another event loop than that of the first call."""
        if self._closed:
            raise PersistError(f"the store at {self.target} was closed: open it again")
        self._loop.enter(self.target)

    async def _attempt(self, work: Callable[[Connection], Awaitable[T]], *, transaction: bool) -> T:
        pool = self._given or self._own
        if pool is None:
            self.refuse_unusable()
        assert pool is not None
        with self.explained(reached=False):
            connection: Connection = await pool.acquire(timeout=self._connect_timeout)
        with self.explained():
            try:
                with anyio.fail_after(self._timeout):
                    if transaction:
                        return await self._in_transaction(connection, work)
                    return await work(connection)
            finally:
                with anyio.CancelScope(shield=True):
                    await pool.release(connection, timeout=_RELEASE_SECONDS)

    async def _in_transaction(self, connection: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
        # By hand: asyncpg's own transaction can't be ended once its beginning was cancelled.
        try:
            await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            result = await work(connection)
            if await connection.execute("COMMIT") != "COMMIT":
                raise PersistError(f"the store at {self.target} rolled the call back, nothing was stored")
        except BaseException:
            # Also when the caller was cancelled: the next one gets a connection without a transaction.
            with (
                contextlib.suppress(*self._failures()),
                anyio.move_on_after(_RELEASE_SECONDS, shield=True),
            ):
                await connection.execute("ROLLBACK")
            raise
        return result

    async def _get_ready(self) -> None:
        self.refuse_unusable()
        if self._ready:
            return
        async with self._opening:
            if self._ready:
                return
            if self._given is None and self._own is None:
                self._own = await self._open()
            if not self.pooled and not await self._is_direct():
                self.pooled = True
                if self._own is not None:
                    await self._own.close()
                    self._own = await self._open()
            await self._attempt(self._prepare, transaction=True)
            self._ready = True

    async def _is_direct(self) -> bool:
        async def compare(connection: Connection) -> bool:
            # Without values: no prepared statement.
            pid = int(connection.get_server_pid())
            return await connection.execute(f"SELECT 1 WHERE pg_backend_pid() = {pid}") == "SELECT 1"

        return await self._attempt(compare, transaction=False)

    async def _open(self) -> Pool:
        asyncpg = load_asyncpg()
        with self.explained(reached=False):
            return await asyncpg.create_pool(
                self._dsn,
                min_size=0,
                max_size=self._max_size,
                timeout=self._connect_timeout,
                statement_cache_size=0 if self.pooled else self._cache,
                # Nothing is left on a connection that would have to be reset.
                reset=_nothing,
                **self._arguments,
            )

    @staticmethod
    def _failures() -> tuple[type[Exception], ...]:
        asyncpg = load_asyncpg()
        return (
            OSError,
            ValueError,
            OverflowError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        )


async def _nothing(_: Any) -> None:
    pass


def load_asyncpg() -> Any:
    """Return the module asyncpg.

    Raises:
        MissingExtraError: it is not installed.
    """
    require_extra(*_EXTRA)
    return importlib.import_module("asyncpg")
