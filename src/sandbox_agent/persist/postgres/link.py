"""Connections to a PostgreSQL server: opened on demand, with timeouts, directly or behind a pooler."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.loops import OneLoop
from sandbox_agent.persist.postgres.errors import describe_target, explain_postgres, is_lost
from sandbox_agent.persist.postgres.library import Connection, Pool, load_asyncpg

T = TypeVar("T")
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


class PostgresLink:
    """A pool of connections: its own, opened by the first call, or one that was handed in.

    Behind a pool that gives each transaction another connection (pgbouncer, transaction pooling) it keeps
    no prepared statements and puts every call into a transaction. It finds that out by itself: such a
    pool names another process id at the log-in than the server's.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``; None reads libpq's
            environment variables (PGHOST, PGUSER, …).
        pool: an asyncpg pool, which is used and never closed.
        max_size: connections of its own pool, at most.
        timeout: seconds that one call may take once it has a connection.
        statement_cache_size: prepared statements kept by a connection; 0: behind a transaction pool;
            None: found out.
        prepare: run over the first connection, again after a failure: makes the tables.
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
        self.target: str = describe_target(None if pool is not None else connection_string or "")
        self.pooled: bool = statement_cache_size == 0
        self._dsn = connection_string
        self._given = pool
        self._own: Pool | None = None
        self._max_size = max_size
        self._timeout = timeout
        self._cache = statement_cache_size
        self._prepare = prepare
        self._name = name
        self._opening = anyio.Lock()
        self._loop = OneLoop()
        self._ready = False
        self._closed = False

    @property
    def handed_in(self) -> Pool | None:
        """The pool that was handed in."""
        return self._given

    async def run(self, work: Callable[[Connection], Awaitable[T]], /, *, session_id: str | None = None) -> T:
        """Run one statement over a connection; again, once, if the connection broke off.

        So the work must bear to be done twice.

        Raises:
            PersistError: the server can't be reached, refused, or took too long.
        """
        return await self._attempt(work, session_id, in_transaction=False)

    async def transaction(
        self, work: Callable[[Connection], Awaitable[T]], /, *, session_id: str | None = None
    ) -> T:
        """Run statements in one transaction (READ COMMITTED); again, once, if the connection broke off.

        Raises:
            PersistError: the server can't be reached, refused, or took too long.
        """
        return await self._attempt(work, session_id, in_transaction=True)

    async def connect(self) -> Connection:
        """Open a connection beside the pool, for as long as the caller wants it.

        Raises:
            PersistError: the server can't be reached or refuses.
        """
        await self._get_ready()
        asyncpg = load_asyncpg()
        try:
            connection: Connection = await asyncpg.connect(
                self._dsn, timeout=CONNECT_SECONDS, statement_cache_size=0, **self._settings()
            )
        except self._failures() as error:
            raise self._explain(error, reached=False) from None
        return connection

    async def borrow(self) -> Connection:
        """Take a connection of the pool that was handed in, which the caller releases.

        Raises:
            PersistError: the server can't be reached or refuses.
        """
        await self._get_ready()
        assert self._given is not None
        try:
            connection: Connection = await self._given.acquire(timeout=CONNECT_SECONDS)
        except self._failures() as error:
            raise self._explain(error, reached=False) from error
        return connection

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

    async def _attempt(
        self, work: Callable[[Connection], Awaitable[T]], session_id: str | None, *, in_transaction: bool
    ) -> T:
        again = False
        while True:
            reached = False
            try:
                await self._get_ready()
                async with self._borrowed() as connection:
                    reached = True
                    with anyio.fail_after(self._timeout):
                        if not in_transaction and not self.pooled:
                            return await work(connection)
                        return await self._in_transaction(connection, work)
            except PersistError as error:
                error.session_id = error.session_id or session_id
                raise
            except self._failures() as error:
                if reached and not again and is_lost(error) and not self._closed:
                    again = True
                    # The others of the pool are as old.
                    if self._own is not None:
                        await self._own.expire_connections()
                    continue
                explained = self._explain(error, reached=reached)
                explained.session_id = session_id
                raise explained from (error if reached else None)

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

    @asynccontextmanager
    async def _borrowed(self) -> AsyncGenerator[Connection]:
        pool = self._given or self._own
        if pool is None:
            self.refuse_unusable()
        assert pool is not None
        connection: Connection = await pool.acquire(timeout=CONNECT_SECONDS)
        try:
            yield connection
        finally:
            with anyio.CancelScope(shield=True):
                await pool.release(connection, timeout=_RELEASE_SECONDS)

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
            reached = False
            try:
                async with self._borrowed() as connection:
                    reached = True
                    with anyio.fail_after(self._timeout):
                        await self._prepare(connection)
            except self._failures() as error:
                raise self._explain(error, reached=reached) from (error if reached else None)
            self._ready = True

    async def _is_direct(self) -> bool:
        reached = False
        try:
            async with self._borrowed() as connection:
                reached = True
                # Without values: no prepared statement.
                with anyio.fail_after(self._timeout):
                    pid = int(connection.get_server_pid())
                    return await connection.execute(f"SELECT 1 WHERE pg_backend_pid() = {pid}") == "SELECT 1"
        except self._failures() as error:
            # Of a connection that could not be made the cause may show the connection string.
            raise self._explain(error, reached=reached) from (error if reached else None)

    async def _open(self) -> Pool:
        asyncpg = load_asyncpg()
        cache = 0 if self.pooled else _CACHED_STATEMENTS if self._cache is None else self._cache
        try:
            pool: Pool = await asyncpg.create_pool(
                self._dsn,
                min_size=0,
                max_size=self._max_size,
                timeout=CONNECT_SECONDS,
                statement_cache_size=cache,
                # Nothing is left on a connection that would have to be reset.
                reset=_nothing,
                **self._settings(),
            )
        except self._failures() as error:
            raise self._explain(error, reached=False) from None
        return pool

    def _settings(self) -> dict[str, Any]:
        # A pooler in between may refuse settings that it doesn't know; this one they all know.
        return {"server_settings": {"application_name": self._name}}

    def _explain(self, error: BaseException, *, reached: bool) -> PersistError:
        return explain_postgres(error, self.target, reached=reached, connection_string=self._dsn)

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
