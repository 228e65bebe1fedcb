"""The client of Redis and Valkey, and its errors. This is the only module that imports the library."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from urllib.parse import urlsplit

from sandbox_agent.errors import PersistError
from sandbox_agent.extras import require_extra
from sandbox_agent.persist.loops import OneLoop
from sandbox_agent.persist.redis.scripts import Script

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

RedisClient: TypeAlias = "Redis | RedisCluster"
Argument: TypeAlias = "bytes | str | int"

# Limit for opening a connection, in seconds.
_CONNECT_TIMEOUT: Final = 5.0
# A connection that the server or a firewall dropped while it was idle is opened again once, without a pause.
_RETRIES: Final = 1
# Concurrent calls, each on its own connection.
_MAX_CALLS: Final = 16
# The library's names of Valkey's schemes.
_SCHEMES: Final = {"valkey": "redis", "valkeys": "rediss"}
# What the error codes of the server mean.
_REFUSALS: Final = {
    "OOM": "it has reached its maxmemory and takes no writes: give it memory, or delete sessions",
    "READONLY": "it is a replica that takes no writes: wait for the failover, or name the primary",
    "LOADING": "it has just started and reads its data: try again in a moment",
    "MISCONF": "it can't write its disk and takes no writes: look at its log",
    "NOREPLICAS": "too few replicas are connected (min-replicas-to-write): restore them",
    "NOAUTH": "it requires a password: add it to the URL",
    "WRONGPASS": "it knows no such name and password: correct the URL",
    "NOPERM": "the user lacks a permission: the page on Redis lists the commands and keys",
    "CLUSTERDOWN": "the cluster has lost some of its slots: wait for it, or repair it",
    "WRONGTYPE": "another program's value has this key: choose another prefix",
    "BUSY": "it is busy with another script: try again in a moment",
}
# For these the library removes the error's first word and raises a class of its own.
_CLASSES: Final = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "WRONGPASS",
    "ClusterDownError": "CLUSTERDOWN",
}
# The first word of an error. In an error of a script, it follows the line number (Redis 6.2).
_CODE: Final = re.compile(r"(?:^|@user_script: ?\d+: )-?([A-Z]{3,})\b")
_AGAIN: Final = "try again, nothing is stored twice"


class BoundedClient:
    """A client whose calls end within ``timeout``, with errors that people understand.

    Args:
        url: the server; None with ``client``.
        client: a client of ``redis.asyncio``. It is never closed here.
        timeout: of one call, in seconds.
        wait_replicas: how many replicas must confirm a write.

    Attributes:
        address: the server as errors name it, without user name and password.
        is_cluster: whether keys are spread over nodes.
        timeout: as given.
        failures: the exceptions of the library.
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
        library = _import_library()
        self.timeout: float = timeout
        self.is_cluster: bool = isinstance(client, library.asyncio.RedisCluster)
        self._wait_replicas = wait_replicas
        self.failures: tuple[type[Exception], ...] = (library.RedisError, OSError, TimeoutError)
        self._no_script: type[Exception] = library.exceptions.NoScriptError
        self._owned = client is None
        if url is not None:
            self._client: Any = _open_client(library, _normalize_url(url), timeout)
            parts = urlsplit(url)
            self.address: str = (
                f"{parts.hostname or 'localhost'}:{parts.port or 6379}" if parts.netloc else "unix"
            )
        else:
            if not isinstance(client, (library.asyncio.Redis, library.asyncio.RedisCluster)):
                raise TypeError("the client must be a Redis or RedisCluster of redis.asyncio")
            self._client = client
            self.address = _address_of(client)
        if wait_replicas and self.is_cluster:
            raise ValueError("wait_replicas does not work in a cluster: set min-replicas-to-write there")
        self.closed: bool = False
        self._loop = OneLoop()
        self._calls = asyncio.Semaphore(_MAX_CALLS)

    async def run(
        self,
        script: Script,
        keys: Sequence[Argument],
        words: Sequence[Argument] = (),
        *,
        session_id: str | None = None,
        write: bool = False,
    ) -> Any:
        """Run a script. Texts in the answer are bytes.

        Raises:
            PersistError: the server can't be reached, refused, or did not answer in time.
        """
        self.check_usable(session_id)
        try:
            async with self._bounded():
                try:
                    return await self._evaluate("EVALSHA", script.sha, keys, words, write=write)
                except self._no_script:
                    # The server was restarted, flushed or failed over. The script did not run.
                    return await self._evaluate("EVAL", script.source, keys, words, write=write)
        except self.failures as error:
            raise self.error(error, session_id, write=write) from error

    async def call(self, *words: Argument, session_id: str | None = None) -> Any:
        """Run a command. Texts in the answer are bytes. Raises as ``run``."""
        self.check_usable(session_id)
        try:
            async with self._bounded():
                return await self._client.execute_command(*words, NEVER_DECODE=True)
        except self.failures as error:
            raise self.error(error, session_id) from error

    async def call_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Run commands that only read, in one round trip. Raises as ``run``."""
        self.check_usable(None)
        if self.is_cluster:
            return await asyncio.gather(*(self.call(*words) for words in commands))
        try:
            async with self._bounded(), self._client.pipeline(transaction=False) as pipeline:
                for words in commands:
                    pipeline.execute_command(*words, NEVER_DECODE=True)
                return await pipeline.execute()
        except self.failures as error:
            raise self.error(error, None) from error

    async def eviction_policy(self) -> str:
        """Return which keys the server evicts when its memory is full; "noeviction" if it does not say."""
        try:
            async with self._bounded():
                found = await self._client.execute_command("INFO", "memory")
        except self.failures:
            found = None
        memory = cast("Mapping[str, Any]", found if isinstance(found, Mapping) else {})
        return str(memory.get("maxmemory_policy", "noeviction")) if memory.get("maxmemory") else "noeviction"

    async def connect(self, key: bytes) -> Any:
        """Return a connection of the library, outside any pool, to the server that has the key."""
        if self.is_cluster:
            await self._client.initialize()
            node = self._client.get_node_from_key(key)
            connection = node.connection_class(**node.connection_kwargs)
        else:
            connection = self._client.connection_pool.make_connection()
        try:
            async with asyncio.timeout(self.timeout):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def close(self) -> None:
        """Close the client if it was opened here. Safe to call twice."""
        if not self.closed:
            self.closed = True
            if self._owned and not self._loop.is_another:
                await self._client.aclose()

    def error(self, cause: BaseException, session_id: str | None, *, write: bool = False) -> PersistError:
        """Return the error that explains a failure of a call in one line."""
        text = " ".join(str(cause).split())
        kind = type(cause).__name__
        words = _CODE.search(text)
        meaning = _REFUSALS.get(_CLASSES.get(kind) or (words[1] if words else ""))
        if meaning is not None:
            message = f"Redis at {self.address} refused: {meaning}"
        elif isinstance(cause, TimeoutError) or kind == "TimeoutError":
            again = f"; the write may be stored: {_AGAIN}" if write else ": try again"
            message = f"Redis at {self.address} did not answer within {self.timeout:g} s{again}"
        elif isinstance(cause, OSError) or kind in {"ConnectionError", "MaxConnectionsError"}:
            again = _AGAIN if write else "try again"
            message = (
                f"Redis at {self.address} can't be reached ({text or kind}): check that it runs and can be "
                f"reached from here, then {again}"
            )
        else:
            message = f"Redis at {self.address} failed: {text or kind}"
        return PersistError(message, session_id=session_id)

    def loss(self, session_id: str) -> PersistError:
        """Return the error for a server that no longer has what it acknowledged."""
        return PersistError(
            f"session '{session_id}': Redis at {self.address} no longer has what it acknowledged (flushed, "
            "evicted, expired, or failed over to a server without it), nothing was stored: restore the "
            "server's data, or resume the session to continue with what is left",
            session_id=session_id,
        )

    @property
    def is_elsewhere(self) -> bool:
        """Whether the first call was made in another event loop."""
        return self._loop.is_another

    def check_usable(self, session_id: str | None) -> None:
        """Raise PersistError if the client is closed, or belongs to another event loop."""
        if self.closed:
            raise PersistError("the store is closed: open it again", session_id=session_id)
        self._loop.enter(self.address)

    @contextlib.asynccontextmanager
    async def _bounded(self) -> AsyncGenerator[None]:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        async with asyncio.timeout(self.timeout), self._calls:
            yield
        if task is not None and task.cancelling() > before:
            # The library uses asyncio.wait_for, which may swallow a cancellation (Python 3.11).
            raise asyncio.CancelledError

    async def _evaluate(
        self, command: str, script: str, keys: Sequence[Argument], words: Sequence[Argument], *, write: bool
    ) -> Any:
        line = (command, script, len(keys), *keys, *words)
        if not (write and self._wait_replicas):
            return await self._client.execute_command(*line, NEVER_DECODE=True)
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command(*line, NEVER_DECODE=True)
            # WAIT must end before our own timeout, also after an EVALSHA that had to be repeated as EVAL.
            pipeline.execute_command("WAIT", self._wait_replicas, int(self.timeout * 1000 / 3))
            answer, confirmed = await pipeline.execute(raise_on_error=True)
        if confirmed < self._wait_replicas:
            raise PersistError(
                f"Redis at {self.address} stored it, but {confirmed} of {self._wait_replicas} replicas "
                "confirmed it in time: try again, nothing is stored twice"
            )
        return answer


def _import_library() -> Any:
    require_extra("Redis", "redis", "redis")
    return cast("Any", importlib.import_module("redis.asyncio") and importlib.import_module("redis"))


def _normalize_url(url: str) -> str:
    """Return the URL with the library's name of the scheme.

    Raises:
        ValueError: the URL is invalid. The message does not contain it, because it may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    known = _SCHEMES.get(scheme.lower(), scheme.lower())
    if not separator or known not in ("redis", "rediss", "unix"):
        raise ValueError(
            "the store's URL must begin with redis://, rediss://, valkey://, valkeys:// or unix://"
        )
    try:
        urlsplit(url).port  # noqa: B018 - it raises if the port is invalid
    except ValueError:
        raise ValueError("the port in the store's URL must be a number from 0 to 65535") from None
    return f"{known}://{rest}"


def _open_client(library: Any, url: str, timeout: float) -> Any:
    try:
        return library.asyncio.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=min(timeout, _CONNECT_TIMEOUT),
            socket_keepalive=True,
            retry=library.asyncio.retry.Retry(library.backoff.NoBackoff(), _RETRIES),
        )
    except ValueError:
        # The library's message may contain parts of the URL.
        raise ValueError(
            "the store's URL is invalid: use redis://[[name]:password@]host[:port][/database]"
        ) from None


def _address_of(client: Any) -> str:
    pool = getattr(client, "connection_pool", None)
    known: Mapping[str, Any] = getattr(pool, "connection_kwargs", None) or {}
    if "path" in known:
        return str(known["path"])
    host = known.get("host")
    return f"{host}:{known.get('port', 6379)}" if host else "the given client"
