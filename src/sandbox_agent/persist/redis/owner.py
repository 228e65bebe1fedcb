"""Own a namespace of a Redis server: a lease that other servers wait for, and a fence against late writes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.client import Argument, BoundedClient, RedisClient
from sandbox_agent.persist.redis.ledger_scripts import ACQUIRE, RELEASE, RENEW, SCHEMA_VERSION
from sandbox_agent.persist.redis.rows import quote_tag
from sandbox_agent.persist.redis.scripts import Script

logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

# A server that has not renewed its lease for so long is considered dead; how often it renews it.
LEASE_SECONDS: Final = 10.0
RENEW_SECONDS: Final = 2.0
# How often a server that waits for the lease polls it.
_POLL_SECONDS: Final = 0.25
# A wait for a lease may take this much longer, because clocks differ.
_GRACE_SECONDS: Final = 2.0


class Owner:
    """Runs scripts on the keys of one namespace. Scripts that write run one at a time and are fenced.

    The arguments are those of ``RedisSessionStore``.

    Attributes:
        base: what all keys begin with.
        trouble: why nothing can be stored now, in one line; None while it can.
    """

    def __init__(
        self, url: str | None, client: RedisClient | None, *, namespace: str, prefix: str, timeout: float
    ) -> None:
        if not namespace:
            raise ValueError("the namespace must be a text, such as 'production'")
        if not prefix or "{" in prefix or "}" in prefix:
            raise ValueError("the prefix must be a text without braces, such as 'sandbox-agent'")
        self.base: bytes = f"{prefix}:server:{{{quote_tag(namespace)}}}:".encode("utf-8", "replace")
        self._client = BoundedClient(url, client, timeout=timeout)
        self._place = f"namespace '{namespace}' of Redis at {self._client.address}"
        self._id = secrets.token_hex(16)
        self._number = 0
        self._write_lock = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None
        self.trouble: str | None = None

    async def open(self) -> None:
        """Acquire the lease. The lease of a server that was killed expires first.

        Raises:
            PersistError: the server can't be used, or another server uses the namespace.
        """
        await self._refuse_eviction()
        deadline = time.monotonic() + LEASE_SECONDS + _GRACE_SECONDS
        left: int | None = None
        while True:
            words = (self._id, int(LEASE_SECONDS * 1000), SCHEMA_VERSION)
            status, *rest = await self.read(ACQUIRE, *words)
            if status == b"ok":
                break
            if status == b"newer":
                raise PersistError(
                    f"{self._place} is of schema version {rest[0]} and this release reads up to "
                    f"{SCHEMA_VERSION}: upgrade sandbox-agent-py, or give --store-namespace another name"
                )
            renewed = left is not None and int(rest[0]) > left
            left = int(rest[0])
            if renewed or time.monotonic() > deadline:
                raise PersistError(
                    f"{self._place} belongs to another running server: stop it, or give --store-namespace "
                    "another name"
                )
            await anyio.sleep(_POLL_SECONDS)
        self._number, self.trouble = 0, None
        self._renewal = asyncio.create_task(self._renew_lease(), name="lease of a store in Redis")

    async def close(self) -> None:
        """Release the lease. Safe to call twice."""
        task, self._renewal = self._renewal, None
        if task is not None:
            while not task.done():  # The client library may swallow a cancellation.
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
            try:
                await self.read(RELEASE, self._id)
            except PersistError as error:
                logger.warning("the store's lease expires by itself in %g s (%s)", LEASE_SECONDS, error)
        await self._client.close()

    async def call(self, command: str, key: str, *words: Argument) -> Any:
        """Run a command that reads one key of the namespace."""
        return await self._client.call(command, self.base + key.encode(), *words)

    async def read(self, script: Script, *words: Argument) -> Any:
        """Return a script's answer."""
        return await self._client.run(script, (self.base,), words)

    async def write(self, script: Script, *words: Argument) -> list[Any] | None:
        """Run a script that begins with the prelude, and return its answer without the status.

        None means that it was done, but its answer was lost with the connection.

        Raises:
            PersistError: the store failed, or has another owner. Nothing was stored, or a retry recognizes
                what was.
        """
        async with self._write_lock:
            # A new number for each attempt makes any earlier call void that the network still holds.
            self._number += 1
            line: Sequence[Argument] = (self._id, self._number, *words)
            status, *rest = await self._client.run(script, (self.base,), line, write=True)
        if status == b"ok":
            return rest
        if status == b"done":
            return None
        raise self._refusal(status, rest)

    def _refusal(self, status: bytes, rest: list[Any]) -> PersistError:
        match status:
            case b"fenced":
                self.trouble = (
                    f"nothing was stored: {self._place} was taken over by another server, because this one "
                    f"did not renew its lease for {LEASE_SECONDS:g} s: stop one of them, restart this one"
                )
                return PersistError(self.trouble)
            case b"emptied":
                self.trouble = (
                    f"nothing was stored: {self._place} holds nothing any more; it was emptied, or is "
                    "another database (failover): restore its data, or restart this server"
                )
                return PersistError(self.trouble)
            case b"other":
                kind, key, number = rest
                what = "event of sequence" if kind == b"e" else "envelope of index"
                return PersistError(
                    f"nothing was stored: session number {key} has another {what} {number}, so two servers "
                    "write this namespace: stop one of them"
                )
            case b"taken":
                what, name = (value.decode("utf-8", "replace") for value in rest)
                return PersistError(
                    f"nothing was stored: the {what} {name!r} is taken, it contradicts a row that is there"
                )
            case _:
                return PersistError("nothing was stored: a later call was executed first; try again")

    async def _refuse_eviction(self) -> None:
        """Raise PersistError if the server may evict the store's keys."""
        policy = await self._client.eviction_policy()
        if policy.startswith("allkeys"):
            raise PersistError(
                f"Redis at {self._client.address} evicts keys when its memory is full (maxmemory-policy "
                f"{policy}), so sessions would vanish: set maxmemory-policy to noeviction"
            )

    async def _renew_lease(self) -> None:
        """Renew the lease until cancelled, also after an outage."""
        while True:
            await anyio.sleep(RENEW_SECONDS)
            before = self.trouble
            try:
                (status,) = await self.read(RENEW, self._id, int(LEASE_SECONDS * 1000))
            except PersistError as error:
                self.trouble = str(error)
                if before is None:
                    logger.warning("the store's lease could not be renewed (%s)", error)
                continue
            if status == b"ok":
                self.trouble = None
                continue
            refusal = str(self._refusal(status, []))
            if refusal != before:
                logger.error("%s", refusal)
