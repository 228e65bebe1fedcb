"""Talking to Redis or Valkey: the one place that imports the library, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast
from urllib.parse import urlsplit

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.loops import OneLoop
from sandbox_agent.persist.redis.errors import describe, lost
from sandbox_agent.persist.redis.scripts import Script

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

__all__ = ["RedisClient", "RedisLink", "Word", "redis_url_of"]

RedisClient: TypeAlias = "Redis | RedisCluster"
Word: TypeAlias = "bytes | str | int"

# How long a connection may take to be made, in seconds.
_CONNECT_TIMEOUT: Final = 5.0
# An idle connection that the server or a firewall has dropped is made anew, once, without a pause.
_RETRIES: Final = 1
# Calls under way, each on a connection.
_AT_ONCE: Final = 16
_SCHEMES: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}


class _Commands(Protocol):
    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]: ...
    def aclose(self) -> Awaitable[None]: ...


def _library() -> Any:
    try:
        return cast("Any", importlib.import_module("redis.asyncio") and importlib.import_module("redis"))
    except ImportError as error:
        raise ImportError(
            "Redis needs the package redis: install it with pip install 'sandbox-agent-py[redis]'"
        ) from error


def redis_url_of(url: str) -> str:
    """Return the URL as the library knows it; ``valkey`` and ``valkeys`` are other names of its schemes.

    Raises:
        ValueError: it is no URL of such a server. The message doesn't repeat it: it may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    known = _SCHEMES.get(scheme.lower())
    if not separator or known is None:
        raise ValueError(
            "the store's URL must begin with redis://, rediss://, valkey://, valkeys:// or unix://"
        )
    try:
        urlsplit(url).port  # noqa: B018 - it raises where the port is none
    except ValueError:
        raise ValueError("the port in the store's URL is no number from 0 to 65535") from None
    return f"{known}://{rest}"


class RedisLink:
    """A client, its scripts, and errors that people understand; every call ends within ``timeout``.

    Args:
        url: the server, where no client is given.
        client: a client of ``redis.asyncio``; never closed here.
        timeout: how long a call may take, in seconds.
        wait_replicas: how many replicas have to confirm a write.

    Attributes:
        address: the server as errors name it, without name and password.
        is_cluster: whether keys are spread over nodes.
        timeout: as given.
    """

    def __init__(
        self,
        url: str | None,
        client: RedisClient | None,
        *,
        timeout: float,
        wait_replicas: int = 0,
    ) -> None:
        if (url is None) == (client is None):
            raise ValueError("give either a URL or a client")
        library = _library()
        self.timeout: float = timeout
        self.is_cluster: bool = isinstance(client, library.asyncio.RedisCluster)
        self._wait_replicas = wait_replicas
        self._errors: tuple[type[Exception], ...] = (library.RedisError, OSError, TimeoutError)
        self._no_script: type[Exception] = library.exceptions.NoScriptError
        self._owned = client is None
        if url is not None:
            self._client: _Commands = _open(library, redis_url_of(url), timeout)
            parts = urlsplit(url)
            self.address: str = (
                f"{parts.hostname or 'localhost'}:{parts.port or 6379}" if parts.netloc else "unix"
            )
        else:
            if not isinstance(client, (library.asyncio.Redis, library.asyncio.RedisCluster)):
                raise TypeError("the client must be one of redis.asyncio: its calls are awaited")
            self._client = cast("_Commands", client)
            self.address = _address_of(client)
        if wait_replicas and self.is_cluster:
            raise ValueError(
                "wait_replicas needs a client of one server: set min-replicas-to-write in a cluster"
            )
        self.closed: bool = False
        self._loop = OneLoop()
        # More at once would only be more connections.
        self._lines = asyncio.Semaphore(_AT_ONCE)

    async def run(
        self,
        script: Script,
        keys: Sequence[Word],
        words: Sequence[Word] = (),
        *,
        session_id: str | None = None,
        write: bool = False,
    ) -> Any:
        """Run a script; texts in its answer are bytes.

        Raises:
            PersistError: the server can't be reached, refused, or did not answer in time.
        """
        self.refuse_unusable(session_id)
        try:
            async with self._bounded():
                try:
                    return await self._eval("EVALSHA", script.sha, keys, words, write=write)
                except self._no_script:
                    # Restarted, flushed or failed over: it was not run, and is known from now on.
                    return await self._eval("EVAL", script.source, keys, words, write=write)
        except self._errors as error:
            raise self.error(error, session_id, write=write) from error

    async def call(self, *words: Word, session_id: str | None = None) -> Any:
        """Run a command; texts in its answer are bytes.

        Raises:
            PersistError: as ``run``.
        """
        self.refuse_unusable(session_id)
        try:
            async with self._bounded():
                return await self._client.execute_command(*words, NEVER_DECODE=True)
        except self._errors as error:
            raise self.error(error, session_id) from error

    async def many(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """Run commands that only read, at once; texts in their answers are bytes.

        Raises:
            PersistError: as ``run``.
        """
        self.refuse_unusable(None)
        if self.is_cluster:
            return await asyncio.gather(*(self.call(*words) for words in commands))
        try:
            async with (
                self._bounded(),
                cast("Any", self._client).pipeline(transaction=False) as pipeline,
            ):
                for words in commands:
                    pipeline.execute_command(*words, NEVER_DECODE=True)
                return await pipeline.execute()
        except self._errors as error:
            raise self.error(error, None) from error

    async def info(self) -> Mapping[str, Any]:
        """Return what the server says about its memory; nothing where it says nothing."""
        try:
            async with self._bounded():
                found = await self._client.execute_command("INFO", "memory")
        except self._errors:
            return {}
        if isinstance(found, Mapping):
            return cast("Mapping[str, Any]", found)
        return {}

    async def connection(self, key: bytes) -> Any:
        """Return a connection of the library's, outside any pool, to the server that has the key."""
        client = cast("Any", self._client)
        if self.is_cluster:
            await client.initialize()
            node = client.get_node_from_key(key)
            connection = node.connection_class(**node.connection_kwargs)
        else:
            connection = client.connection_pool.make_connection()
        try:
            async with asyncio.timeout(self.timeout):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What the library raises where a server fails."""
        return self._errors

    async def close(self) -> None:
        """Close the client if it was opened here. Safe to call twice."""
        if not self.closed:
            self.closed = True
            if self._owned and not self._loop.is_another:
                await self._client.aclose()

    def error(self, cause: BaseException, session_id: str | None, *, write: bool = False) -> PersistError:
        """Return what a failure means, in one line."""
        return describe(self.address, cause, session_id, limit=self.timeout, write=write)

    def lost(self, session_id: str) -> PersistError:
        """Return what is told where the server no longer has what it acknowledged."""
        return lost(self.address, session_id)

    @contextlib.asynccontextmanager
    async def _bounded(self) -> AsyncGenerator[None]:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        async with asyncio.timeout(self.timeout), self._lines:
            yield
        if task is not None and task.cancelling() > before:
            # The library waits by asyncio.wait_for, which swallows a cancellation now and then (Python 3.11).
            raise asyncio.CancelledError

    @property
    def is_elsewhere(self) -> bool:
        """Whether it belongs to another event loop than the running one."""
        return self._loop.is_another

    def refuse_unusable(self, session_id: str | None) -> None:
        """Raise PersistError once it was closed, and in another event loop than that of the first call."""
        if self.closed:
            raise PersistError("the store is closed: open it again", session_id=session_id)
        self._loop.enter(self.address)

    async def _eval(
        self, command: str, script: str, keys: Sequence[Word], words: Sequence[Word], *, write: bool
    ) -> Any:
        line = (command, script, len(keys), *keys, *words)
        if not (write and self._wait_replicas):
            return await self._client.execute_command(*line, NEVER_DECODE=True)
        async with cast("Any", self._client).pipeline(transaction=False) as pipeline:
            pipeline.execute_command(*line, NEVER_DECODE=True)
            # The server's own wait ends before ours does, also where the script has to be sent after all.
            pipeline.execute_command("WAIT", self._wait_replicas, int(self.timeout * 1000 / 3))
            answer, confirmed = await pipeline.execute(raise_on_error=True)
        if confirmed < self._wait_replicas:
            raise PersistError(
                f"Redis at {self.address} stored it, but {confirmed} of {self._wait_replicas} replicas "
                "confirmed it in time: try again, nothing is stored twice"
            )
        return answer


def _open(library: Any, url: str, timeout: float) -> _Commands:
    try:
        client = library.asyncio.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=min(timeout, _CONNECT_TIMEOUT),
            socket_keepalive=True,
            retry=library.asyncio.retry.Retry(library.backoff.NoBackoff(), _RETRIES),
        )
    except ValueError:
        # The library's text may repeat what is in the URL.
        raise ValueError(
            "the store's URL can't be read: redis://[[name]:password@]host[:port][/database]"
        ) from None
    return cast("_Commands", client)


def _address_of(client: Any) -> str:
    pool = getattr(client, "connection_pool", None)
    known: Mapping[str, Any] = getattr(pool, "connection_kwargs", None) or {}
    if "path" in known:
        return str(known["path"])
    host = known.get("host")
    return f"{host}:{known.get('port', 6379)}" if host else "the given client"
