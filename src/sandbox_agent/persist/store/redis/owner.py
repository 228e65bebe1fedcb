"""Owning a namespace of a Redis server: a lease that others wait for, and a fence that keeps them apart."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.client import RedisClient, RedisLink, Word
from sandbox_agent.persist.redis.scripts import Script
from sandbox_agent.persist.store.redis.scripts import ACQUIRE, RELEASE, RENEW, SCHEMA_VERSION

__all__ = ["LEASE_SECONDS", "Owner"]

logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

# How long after its last sign of life a server is taken for dead, and how often it gives one.
LEASE_SECONDS: Final = 10.0
RENEW_SECONDS: Final = 2.0
# How often a server that waits for another's lease looks.
_LOOK_SECONDS: Final = 0.25
# What a wait for a lease may take beyond it: clocks tick differently.
_GRACE_SECONDS: Final = 2.0
_QUOTED: Final = {"%": "%25", "{": "%7B", "}": "%7D"}

_acquire: Final = Script(ACQUIRE)
_renew: Final = Script(RENEW)
_release: Final = Script(RELEASE)


class Owner:
    """Runs scripts on the keys of one namespace; those that write, one after the other and fenced.

    Args:
        url: the server; None where a client is given.
        client: as of ``RedisLink``.
        namespace: what tells servers apart that share a database.
        prefix: of all keys.
        timeout: of one call, in seconds.

    Attributes:
        base: what all keys begin with.
        trouble: why nothing can be stored now, in one line; None while it can.
    """

    def __init__(
        self,
        url: str | None,
        client: RedisClient | None,
        *,
        namespace: str,
        prefix: str,
        timeout: float,
    ) -> None:
        if not namespace:
            raise ValueError("the namespace must be a text, such as 'production'")
        if not prefix or "{" in prefix or "}" in prefix:
            raise ValueError("the prefix must be a text without braces, such as 'sandbox-agent'")
        quoted = "".join(_QUOTED.get(character, character) for character in namespace)
        self.base: bytes = f"{prefix}:server:{{{quoted}}}:".encode("utf-8", "replace")
        self._link = RedisLink(url, client, timeout=timeout)
        self._place = f"namespace '{namespace}' of Redis at {self._link.address}"
        self._id = secrets.token_hex(16)
        self._number = 0
        self._one_by_one = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        self.trouble: str | None = None

    async def open(self) -> None:
        """Become the owner; the lease of a server that was killed is waited for.

        Raises:
            PersistError: the server can't be used, or another server lives in the namespace.
        """
        await self._check_server()
        deadline = time.monotonic() + LEASE_SECONDS + _GRACE_SECONDS
        left: int | None = None
        while True:
            words = (self._id, int(LEASE_SECONDS * 1000), SCHEMA_VERSION)
            status, *rest = await self._link.run(_acquire, (self.base,), words)
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
            await anyio.sleep(_LOOK_SECONDS)
        self._number, self.trouble = 0, None
        self._renewing = asyncio.create_task(self._renew(), name="lease of a store in Redis")

    async def close(self) -> None:
        """Let the namespace go. Safe to call twice."""
        task, self._renewing = self._renewing, None
        if task is not None:
            while not task.done():  # a cancellation may be swallowed by what it meets
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
            try:
                await self._link.run(_release, (self.base,), (self._id,))
            except PersistError as error:
                logger.warning("the store's lease runs out by itself in %g s (%s)", LEASE_SECONDS, error)
        await self._link.close()

    async def read(self, script: Script, *words: Word) -> Any:
        """Return what a script says.

        Raises:
            PersistError: the store failed.
        """
        return await self._link.run(script, (self.base,), words)

    async def write(self, script: Script, *words: Word) -> list[Any] | None:
        """Run a script that begins with the prelude, and return what it says behind its status.

        None means that it was done and its answer was lost with the connection.

        Raises:
            PersistError: the store failed, or has another owner; nothing was stored, or what was is
                recognised when it is tried again.
        """
        async with self._one_by_one:
            # Once per try, also after one that failed: what the network still holds of it is then void.
            self._number += 1
            line: Sequence[Word] = (self._id, self._number, *words)
            status, *rest = await self._link.run(script, (self.base,), line, write=True)
        if status == b"ok":
            return rest
        if status == b"done":
            return None
        raise self._refusal(status, rest)

    def _refusal(self, status: bytes, rest: list[Any]) -> PersistError:
        match status:
            case b"fenced":
                self.trouble = (
                    f"nothing was stored: {self._place} was taken over by another server, as this one gave "
                    f"no sign of life for {LEASE_SECONDS:g} s: stop one of them and start this one again"
                )
                return PersistError(self.trouble)
            case b"emptied":
                self.trouble = (
                    f"nothing was stored: {self._place} holds nothing any more; it was emptied, or is "
                    "another database (failover): bring its data back, or start this server again"
                )
                return PersistError(self.trouble)
            case b"other":
                kind, key, number = rest
                what = "event of sequence" if kind == b"e" else "envelope of index"
                return PersistError(
                    f"nothing was stored: session number {key} has another {what} {number}, so two writers "
                    "must be at work; stop one of them"
                )
            case b"taken":
                what, name = (value.decode("utf-8", "replace") for value in rest)
                return PersistError(
                    f"nothing was stored: what was to be stored contradicts a row that is there: the {what} "
                    f"{name!r} is taken"
                )
            case _:
                return PersistError("nothing was stored: a later call came first; try again")

    async def _check_server(self) -> None:
        """Say what will lose data, while it is not too late."""
        memory = await self._link.info()
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if memory.get("maxmemory") and policy.startswith("allkeys"):
            raise PersistError(
                f"Redis at {self._link.address} throws keys away when its memory is full (maxmemory-policy "
                f"{policy}), so sessions would vanish: set maxmemory-policy to noeviction"
            )

    async def _renew(self) -> None:
        """Renew the lease for ever; an outage is waited out."""
        while True:
            await anyio.sleep(RENEW_SECONDS)
            before = self.trouble
            try:
                words = (self._id, int(LEASE_SECONDS * 1000))
                (status,) = await self._link.run(_renew, (self.base,), words)
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
