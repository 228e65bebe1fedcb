"""Which server owns a namespace: one at a time.

Each server that opens a namespace gets a generation, above all before, and every commit is made only while
that is the newest: a server that was replaced writes nothing any more. No live server is replaced, though:
the owner holds an advisory lock on a connection of its own, which the database releases when the owner's
process, or its machine, is gone. Behind a transaction pool such a lock means nothing; there the owner renews
a lease instead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, TypeVar

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.dialect import PostgresDialect, original, storable
from sandbox_agent.persist.postgres.errors import explain_postgres
from sandbox_agent.persist.postgres.library import Connection, load_asyncpg
from sandbox_agent.persist.postgres.link import PostgresLink
from sandbox_agent.persist.postgres.schema import quoted
from sandbox_agent.persist.postgres.store_schema import lock_class
from sandbox_agent.persist.sql.work import Query, Work

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

# A killed owner's lock is released at once; if its statement still runs, when that ends.
_LOCK_SECONDS: Final = 3.0
_RETRY_SECONDS: Final = 0.1
# A lease outlasts a few renewals that come late.
_LEASE_SECONDS: Final = 8
_RENEW_SECONDS: Final = 2.0
# How soon the lock is asked for again once its connection broke, and how often the connection is tried.
_AGAIN_SECONDS: Final = 0.5
_CHECK_SECONDS: Final = 10.0
# When the owner's machine is gone without a word, the database finds out after some 25 s.
_KEEPALIVE: Final = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
)


class Owner:
    """Owns a namespace.

    Args:
        link: connections to the database.
        schema: the schema of its tables.
        namespace: its name.

    Attributes:
        number: the namespace's, once it is acquired or found.
        generation: what this server writes with.
        replaced: why it may not write any more; None while it may.
        trouble: why the namespace can't be held now; None while it is.
    """

    def __init__(self, link: PostgresLink, schema: str, namespace: str) -> None:
        self.number: int = 0
        self.generation: int = 0
        self.replaced: str | None = None
        self.trouble: str | None = None
        self._link = link
        self._table = f"{quoted(schema)}.store_namespaces"
        self._lock = lock_class(schema)
        self._dialect = PostgresDialect(schema)
        self._name = namespace
        self._connection: Connection | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def acquire(self) -> None:
        """Become the namespace's owner, until ``release``.

        Raises:
            PersistError: another server has it, or the database fails.
        """
        self.number = await self._link.transaction(self._find_number)
        if self._link.pooled:
            await self._acquire_lease()
        else:
            await self._acquire_lock()
        self._keeping = asyncio.ensure_future(self._keep())

    async def find(self) -> None:
        """Find the namespace without becoming its owner; writing is refused then.

        Raises:
            PersistError: there is none of that name, or the database fails.
        """

        async def find(connection: Connection) -> object:
            statement = f"SELECT number FROM {self._table} WHERE name = $1"
            return await connection.fetchval(statement, storable(self._name))

        found = await self._link.run(find)
        if not isinstance(found, int):
            raise PersistError(
                f"the store at {self._link.target} has no namespace '{self._name}': name the one that its "
                "server has (--store-namespace, or store-namespace in its folder for data)"
            )
        self.number = found
        self.replaced = "this store was opened to be read, nothing was stored: its server writes it"

    async def release(self) -> None:
        """Let other servers acquire it."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait([keeping])
            with suppress(PersistError):
                await self._link.run(self._forget)
        self._drop()

    def explain_loss(self) -> Work[PersistError]:
        """Return why a write was refused."""
        rows = yield Query("SELECT owner FROM {store_namespaces} WHERE number = $1", (self.number,))
        if not rows:
            return PersistError(
                f"the store at {self._link.target} has lost the namespace '{self._name}', nothing was "
                "stored: it was emptied or is another database; bring the right one back, or restart the "
                "server to begin with an empty one"
            )
        self.replaced = (
            f"the namespace '{self._name}' of the store at {self._link.target} was taken over by another "
            f"server ({original(rows[0][0])}), nothing was stored: stop one of the two, or give it another "
            "--store-namespace"
        )
        return PersistError(self.replaced)

    async def _find_number(self, connection: Connection) -> int:
        name = storable(self._name)
        await connection.execute(f"INSERT INTO {self._table} (name) VALUES ($1) ON CONFLICT DO NOTHING", name)
        return int(await connection.fetchval(f"SELECT number FROM {self._table} WHERE name = $1", name))

    async def _acquire_lock(self) -> None:
        deadline = anyio.current_time() + _LOCK_SECONDS
        connection = await self._link.connect()
        try:
            await self._ask(connection.execute(_KEEPALIVE))
            while not await self._try_lock(connection):
                if anyio.current_time() > deadline:
                    raise await self._refusal()
                await anyio.sleep(_RETRY_SECONDS)
            # An owner that is connected by a pool holds a lease instead.
            while (generation := await self._link.transaction(self._begin)) is None:
                if anyio.current_time() > deadline + _LEASE_SECONDS:
                    raise await self._refusal()
                await anyio.sleep(_RETRY_SECONDS)
        except BaseException:
            connection.terminate()
            raise
        self.generation = generation
        self._connection = connection

    async def _acquire_lease(self) -> None:
        deadline = anyio.current_time() + _LEASE_SECONDS + _RENEW_SECONDS
        while (generation := await self._link.transaction(self._begin)) is None:
            if anyio.current_time() > deadline:
                raise await self._refusal()
            await anyio.sleep(_RETRY_SECONDS)
        self.generation = generation

    async def _begin(self, connection: Connection) -> int | None:
        """Begin a new generation unless another server's lease, or lock, holds."""
        busy = await connection.fetchval(
            "SELECT coalesce(lease_until > clock_timestamp(), false) "
            f"FROM {self._table} WHERE number = $1 FOR UPDATE",
            self.number,
        )
        if busy:
            return None
        lease = "NULL"
        if self._link.pooled:
            lock = f"SELECT pg_try_advisory_xact_lock({self._lock}, {self.number})"
            if not await connection.fetchval(lock):
                return None
            lease = f"clock_timestamp() + interval '{_LEASE_SECONDS} s'"
        found = await connection.fetchval(
            f"UPDATE {self._table} SET generation = generation + 1, owner = $2, owned_at = now(), "
            f"lease_until = {lease} WHERE number = $1 RETURNING generation",
            self.number,
            storable(f"process {os.getpid()} on {socket.gethostname()}"),
        )
        return int(found)

    async def _forget(self, connection: Connection) -> None:
        await connection.execute(
            f"UPDATE {self._table} SET owner = '', lease_until = NULL WHERE number = $1 AND generation = $2",
            self.number,
            self.generation,
        )

    async def _refusal(self) -> PersistError:
        async def read(connection: Connection) -> str:
            statement = f"SELECT owner FROM {self._table} WHERE number = $1"
            return str(await connection.fetchval(statement, self.number))

        owner = original(await self._link.run(read))
        return PersistError(
            f"the namespace '{self._name}' of the store at {self._link.target} belongs to another running "
            f"server{f' ({owner})' if owner else ''}: stop it, or give --store-namespace another name"
        )

    async def _keep(self) -> None:
        """Renew the lease, or get the lock again when its connection broke."""
        while self.replaced is None:
            try:
                if self._link.pooled:
                    await anyio.sleep(_RENEW_SECONDS)
                    await self._link.run(self._renew)
                elif self._connection is None:
                    await self._lock_again()
                else:
                    await self._watch(self._connection)
            except PersistError as error:
                self.trouble = str(error)
                logger.debug("the store's namespace can't be held now (%s)", error)
                await anyio.sleep(_AGAIN_SECONDS)
        logger.error("%s", self.replaced)

    async def _renew(self, connection: Connection) -> None:
        renewed = await connection.fetchval(
            f"UPDATE {self._table} SET lease_until = clock_timestamp() + interval '{_LEASE_SECONDS} s' "
            "WHERE number = $1 AND generation = $2 RETURNING 1",
            self.number,
            self.generation,
        )
        if not renewed:
            raise await self._loss(connection)
        self.trouble = None

    async def _watch(self, connection: Connection) -> None:
        """Return when the connection is no more."""
        ended = anyio.Event()

        def note(_: object) -> None:
            ended.set()

        connection.add_termination_listener(note)
        while not connection.is_closed():
            with anyio.move_on_after(_CHECK_SECONDS):
                await ended.wait()
            if not connection.is_closed():
                with anyio.move_on_after(_CHECK_SECONDS) as scope, suppress(PersistError):
                    await self._ask(connection.execute("SELECT 1"))
                if scope.cancelled_caught:
                    break
        self.trouble = f"the store at {self._link.target} broke off the connection: it is tried again"
        self._drop()

    async def _lock_again(self) -> None:
        connection = await self._link.connect()
        try:
            await self._ask(connection.execute(_KEEPALIVE))
            locked = await self._try_lock(connection)
            statement = f"SELECT generation FROM {self._table} WHERE number = $1"
            if await self._ask(connection.fetchval(statement, self.number)) != self.generation:
                raise await self._ask(self._loss(connection))
        except BaseException:
            connection.terminate()
            raise
        if locked:
            self._connection = connection
            self.trouble = None
        else:
            # The old one may still be held for a connection that the database considers alive.
            connection.terminate()
            await anyio.sleep(_AGAIN_SECONDS)

    async def _try_lock(self, connection: Connection) -> bool:
        lock = f"SELECT pg_try_advisory_lock({self._lock}, {self.number})"
        return bool(await self._ask(connection.fetchval(lock)))

    async def _loss(self, connection: Connection) -> PersistError:
        return await self._dialect.run(connection, self.explain_loss)

    async def _ask(self, call: Awaitable[T]) -> T:
        """Await a call on the owner's connection."""
        asyncpg = load_asyncpg()
        try:
            return await call
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise explain_postgres(error, self._link.target, reached=True) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
