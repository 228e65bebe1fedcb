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
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.dialect import PostgresDatabase, PostgresDialect, original, storable
from sandbox_agent.persist.postgres.link import Connection, PostgresLink
from sandbox_agent.persist.postgres.schema import store_lock
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
_IS_LEASED: Final = """
SELECT coalesce(lease_until > clock_timestamp(), false) FROM {store_namespaces} WHERE number = $1 FOR UPDATE
"""
_LEASE_UNTIL: Final = "clock_timestamp() + $3 * interval '1 s'"
_BEGIN: Final = f"""
UPDATE {{store_namespaces}} SET generation = generation + 1, owner = $2, owned_at = now(),
  lease_until = {_LEASE_UNTIL}
WHERE number = $1 RETURNING generation
"""
_RENEW: Final = f"""
UPDATE {{store_namespaces}} SET lease_until = {_LEASE_UNTIL} WHERE number = $1 AND generation = $2 RETURNING 1
"""
_FORGET: Final = """
UPDATE {store_namespaces} SET owner = '', lease_until = NULL WHERE number = $1 AND generation = $2
"""


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
        self._database = PostgresDatabase(link, PostgresDialect(schema))
        self._lock = store_lock(schema)
        self._name = namespace
        self._connection: Connection | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def acquire(self) -> None:
        """Become the namespace's owner, until ``release``.

        Raises:
            PersistError: another server has it, or the database fails.
        """
        self.number = await self._database.write(partial(self._find_number, make=True))
        if not self._link.pooled:
            self._connection = await self._link.connect()
        try:
            if self._connection is not None:
                await self._poll(partial(self._try_lock, self._connection), _LOCK_SECONDS)
            # An owner that is connected by a pool holds a lease, also where this one is not.
            begin = partial(self._database.write, self._begin)
            self.generation = await self._poll(begin, _LEASE_SECONDS + _RENEW_SECONDS)
        except BaseException:
            self._drop()
            raise
        self._keeping = asyncio.ensure_future(self._keep())

    async def find(self) -> None:
        """Find the namespace without becoming its owner; writing is refused then.

        Raises:
            PersistError: there is none of that name, or the database fails.
        """
        self.number = await self._database.read(self._find_number)
        if not self.number:
            raise PersistError(
                f"the store at {self._link.target} has no namespace '{self._name}': name the one that its "
                "server has (--store-namespace, or store-namespace in its folder for data)"
            )
        self.replaced = "this store was opened to be read, nothing was stored: its server writes it"

    async def release(self) -> None:
        """Let other servers acquire it."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait([keeping])
            with suppress(PersistError):
                await self._database.write(self._forget)
        self._drop()

    def refuse_replaced(self) -> None:
        """Raise PersistError once another server owns the namespace."""
        if self.replaced is not None:
            raise PersistError(self.replaced)

    def explain_loss(self) -> Work[PersistError]:
        """Return why a write was refused."""
        owner = yield from self._owner()
        if owner is None:
            return PersistError(
                f"the store at {self._link.target} has lost the namespace '{self._name}', nothing was "
                "stored: it was emptied or is another database; bring the right one back, or restart the "
                "server to begin with an empty one"
            )
        self.replaced = (
            f"the namespace '{self._name}' of the store at {self._link.target} was taken over by another "
            f"server ({owner}), nothing was stored: stop one of the two, or give it another "
            "--store-namespace"
        )
        return PersistError(self.replaced)

    def _find_number(self, *, make: bool = False) -> Work[int]:
        values = (storable(self._name),)
        if make:
            yield Query("INSERT INTO {store_namespaces} (name) VALUES ($1) ON CONFLICT DO NOTHING", values)
        rows = yield Query("SELECT number FROM {store_namespaces} WHERE name = $1", values)
        return int(rows[0][0]) if rows else 0

    def _owner(self) -> Work[str | None]:
        rows = yield Query("SELECT owner FROM {store_namespaces} WHERE number = $1", (self.number,))
        return original(rows[0][0]) if rows else None

    async def _poll(self, attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
        """Return what an attempt returns that succeeds.

        Raises:
            PersistError: none does in that time, because the namespace is another server's.
        """
        deadline = anyio.current_time() + seconds
        while not (found := await attempt()):
            if anyio.current_time() > deadline:
                owner = await self._database.read(self._owner)
                raise PersistError(
                    f"the namespace '{self._name}' of the store at {self._link.target} belongs to another "
                    f"running server{f' ({owner})' if owner else ''}: stop it, or give --store-namespace "
                    "another name"
                )
            await anyio.sleep(_RETRY_SECONDS)
        return found

    def _begin(self) -> Work[int]:
        """Begin a new generation and return it; 0 while another server's lease, or lock, holds."""
        rows = yield Query(_IS_LEASED, (self.number,))
        if rows[0][0]:
            return 0
        if self._link.pooled:
            rows = yield Query(f"SELECT pg_try_advisory_xact_lock({self._lock}, {self.number})")
            if not rows[0][0]:
                return 0
        owner = storable(f"process {os.getpid()} on {socket.gethostname()}")
        # Without an interval there is no lease.
        lease = float(_LEASE_SECONDS) if self._link.pooled else None
        rows = yield Query(_BEGIN, (self.number, owner, lease))
        return int(rows[0][0])

    def _forget(self) -> Work[None]:
        yield Query(_FORGET, (self.number, self.generation))

    async def _keep(self) -> None:
        """Renew the lease, or get the lock again when its connection broke."""
        while self.replaced is None:
            try:
                if self._link.pooled:
                    await anyio.sleep(_RENEW_SECONDS)
                    await self._database.write(self._renew)
                    self.trouble = None
                elif self._connection is None:
                    await self._lock_again()
                else:
                    await self._watch(self._connection)
            except PersistError as error:
                self.trouble = str(error)
                logger.debug("the store's namespace can't be held now (%s)", error)
                await anyio.sleep(_AGAIN_SECONDS)
        logger.error("%s", self.replaced)

    def _renew(self) -> Work[None]:
        if not (yield Query(_RENEW, (self.number, self.generation, float(_LEASE_SECONDS)))):
            raise (yield from self.explain_loss())

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
                with (
                    anyio.move_on_after(_CHECK_SECONDS) as scope,
                    suppress(PersistError),
                    self._link.explained(),
                ):
                    await connection.execute("SELECT 1")
                if scope.cancelled_caught:
                    break
        self.trouble = f"the store at {self._link.target} broke off the connection: it is tried again"
        self._drop()

    async def _lock_again(self) -> None:
        connection = await self._link.connect()
        try:
            locked = await self._try_lock(connection)
            await self._database.read(self._check_generation)
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

    def _check_generation(self) -> Work[None]:
        values = (self.number, self.generation)
        query = "SELECT 1 FROM {store_namespaces} WHERE number = $1 AND generation = $2"
        if not (yield Query(query, values)):
            raise (yield from self.explain_loss())

    async def _try_lock(self, connection: Connection) -> bool:
        with self._link.explained():
            await connection.execute(_KEEPALIVE)
            lock = f"SELECT pg_try_advisory_lock({self._lock}, {self.number})"
            return bool(await connection.fetchval(lock))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
