"""``--store``: where the server keeps what is more than its memory."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

import anyio

from sandbox_agent.agents.layout import data_dir
from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.persist.open import StoreURL, parse_store_url
from sandbox_agent.persist.segments import FileSegments, SQLiteSegments
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import TEMPORARY, SQLiteThread
from sandbox_agent.persist.store.base import SessionStore
from sandbox_agent.server.agents.spill import Spill

__all__ = [
    "MEMORY_STORE",
    "Store",
    "check_namespace",
    "check_store",
    "default_namespace",
    "default_store",
    "open_store",
    "secrets_of",
    "trouble_of",
]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How often it is looked for deletes that have left something in the file; at the start, too.
FINISH_SECONDS = 60.0
# How often a file that nobody may be writing is tried, for health; and while it can't be written.
CHECK_SECONDS = 5.0
AGAIN_SECONDS = 0.5
# How long the end of the server waits for a database to take leave of.
CLOSE_SECONDS = 5.0
MEMORY_STORE = "memory"
_SQLITE = "sqlite:"
# In the platform's folder for data; holds this server's own namespace.
_NAMESPACE_FILE: Final = "store-namespace"
_MAX_NAMESPACE: Final = 200


class RemoteStore(SessionStore, Protocol):
    """A store that is reached over the network and shared with other servers.

    It may have an attribute ``trouble``: why it can't be used now, in one line; None while it works.
    """

    async def finish_deletes(self) -> None:
        """Go on with deletes that were interrupted."""
        ...

    async def close(self) -> None:
        """Let go of the namespace."""
        ...


class Store(NamedTuple):
    """What a server keeps: the feeds that memory has no room for, and its sessions."""

    spill: Spill
    sessions: SessionStore


def default_store() -> str:
    """Return the store of a server that was told none: in the platform's folder for data."""
    return f"{_SQLITE}{data_dir() / 'server.db'}"


def check_store(store: str) -> str:
    """Return the value of ``--store``.

    Raises:
        InvalidRequestError: it names no kind of store.
    """
    url = parse_store_url(store)
    if url.encrypted:
        raise InvalidRequestError(
            f"the store '{url.shown}' is an SDK's: the server encrypts nothing, so leave 'encrypted+' out"
        )
    if url.path is None:
        return url.where
    if not url.path.name:
        raise InvalidRequestError(f"the store '{url.shown}' names no file: give 'sqlite:PATH'")
    return f"{_SQLITE}{url.where}"


def check_namespace(namespace: str) -> str:
    """Return the value of ``--store-namespace``.

    Raises:
        InvalidRequestError: it is empty, long, or not printable.
    """
    if not namespace.strip() or len(namespace) > _MAX_NAMESPACE or not namespace.isprintable():
        raise InvalidRequestError(
            f"a store's namespace has 1 to {_MAX_NAMESPACE} printable characters: give another one"
        )
    return namespace


def default_namespace() -> str:
    """Return this server's own namespace: made once, and kept in the platform's folder for data.

    Raises:
        PersistError: it can't be kept.
    """
    path = data_dir() / _NAMESPACE_FILE
    try:
        with suppress(FileNotFoundError):
            return check_namespace(path.read_text().strip())
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=_NAMESPACE_FILE) as file:
            file.write(f"server-{secrets.token_hex(8)}\n")
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):  # another server of this machine was quicker
                os.link(file.name, path)
        return check_namespace(path.read_text().strip())
    except (OSError, UnicodeError, InvalidRequestError) as error:
        raise PersistError(
            f"the namespace of this server's sessions can't be kept in '{path}' ({error}): "
            "give --store-namespace a name"
        ) from error


def secrets_of(store: str) -> Sequence[str]:
    """Return what must not be logged of a store's URL: all of it, and its password."""
    if "://" not in store:
        return []
    found = [store]
    with suppress(ValueError):
        url = urlsplit(store)
        if url.password:
            found += [url.password, unquote(url.password)]
    return found


def trouble_of(store: SessionStore) -> str | None:
    """Return why a store can't be used now, where it knows by itself."""
    trouble: object = getattr(store, "trouble", None)
    return trouble if isinstance(trouble, str) else None


@asynccontextmanager
async def open_store(store: str, *, namespace: str | None = None) -> AsyncGenerator[Store]:
    """Open the store and close it at the end.

    Args:
        store: a value of ``--store``.
        namespace: which part of a shared database; None takes this server's own.

    Raises:
        InvalidRequestError: it names no kind of store, or the store has no namespaces.
        PersistError: it can't be opened, or another server has it.
    """
    store = check_store(store)
    url = parse_store_url(store)
    if url.kind in ("postgres", "redis"):
        async with _open_remote(url, namespace or default_namespace()) as opened:
            yield opened
        return
    if namespace is not None:
        raise InvalidRequestError(
            f"the store '{url.shown}' has no namespaces: leave --store-namespace out, or give --store a "
            "database"
        )
    if store == MEMORY_STORE:
        # nothing is kept, and memory is no longer than a disk: SQLite's own temporary file holds the rest
        thread = SQLiteThread(TEMPORARY, prepare=_lean)
        try:
            sessions = SQLiteSessionStore(thread, thread)
            await sessions.open()
            yield Store(FileSegments(), sessions)
        finally:
            await thread.close()
        return
    path = Path(os.path.expanduser(store.removeprefix(_SQLITE)))  # noqa: ASYNC240, PTH111 - no I/O
    with _owned(path):
        writer, reader = SQLiteThread(path, prepare=_lean), SQLiteThread(path, read_only=True)
        searcher = SQLiteThread(path, read_only=True)
        try:
            segments = SQLiteSegments(writer, reader)
            await segments.open()
            sessions = SQLiteSessionStore(writer, reader, searcher)
            await sessions.open()
            async with _beside(partial(_finish_deletes, sessions)), _beside(partial(_check, sessions)):
                yield Store(segments, sessions)
        finally:
            await searcher.close()
            await reader.close()
            await writer.close()


@asynccontextmanager
async def _open_remote(url: StoreURL, namespace: str) -> AsyncGenerator[Store]:
    sessions = _remote(url, namespace)
    try:
        await sessions.open()
        async with _beside(partial(_finish_deletes, sessions)):
            # Feeds end with their server: they stay on its machine.
            yield Store(FileSegments(), sessions)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_SECONDS):
            await sessions.close()


def _remote(url: StoreURL, namespace: str) -> RemoteStore:
    # The drivers' packages are extras.
    try:
        if url.kind == "postgres":
            from sandbox_agent.persist.store.postgres.store import PostgresSessionStore

            return PostgresSessionStore(url.where, namespace=namespace)
        from sandbox_agent.persist.store.redis.store import RedisSessionStore

        return RedisSessionStore(url.where, namespace=namespace)
    except (ImportError, ValueError) as error:
        raise PersistError(f"the store '{url.shown}' can't be opened: {error}") from None


@asynccontextmanager
async def _beside(work: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Run it beside the block; no task group, as what fails in the block is to be raised as it is."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await work()

    running = asyncio.ensure_future(run())
    try:
        yield
    finally:
        scope.cancel()  # again and again: a client library may take a cancellation for its own
        await asyncio.wait([running])


async def _finish_deletes(sessions: SQLiteSessionStore | RemoteStore) -> None:
    """End the deletes that a former run had begun, and what could not be cleaned at once."""
    while True:
        try:
            await sessions.finish_deletes()
        except PersistError as error:
            logger.warning("what was deleted is still in the store, the next try is in a minute (%s)", error)
        await anyio.sleep(FINISH_SECONDS)


async def _check(sessions: SQLiteSessionStore) -> None:
    """Keep what the store says of itself true, also while nobody has anything to store."""
    while True:
        await anyio.sleep(CHECK_SECONDS if sessions.trouble is None else AGAIN_SECONDS)
        await sessions.check()


def _lean(connection: sqlite3.Connection) -> None:
    # A log is written at its end, so few pages are warm; a sandbox has better use for the memory.
    connection.execute("PRAGMA cache_size=-4096")


@contextmanager
def _owned(path: Path) -> Generator[None]:
    """Hold the store against other servers; the kernel lets go of it however this one ends."""
    try:
        # One lock, whatever symbolic links lead to the file.
        target = path.resolve()
        lock = target.with_name(target.name + ".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("wb")
    except OSError as error:
        raise PersistError(
            f"the store '{path}' can't be opened: {error.strerror}: {error.filename}"
        ) from error
    except RuntimeError as error:
        raise PersistError(
            f"the store '{path}' can't be opened, its symbolic links lead nowhere: {error}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PersistError(
                f"the store '{path}' belongs to another running server: stop it, or give --store another path"
            ) from error
        if target.is_file() and target.stat().st_nlink > 1:
            raise PersistError(
                f"the store '{path}' has several names (hard links): each would get a log of its own "
                "and damage it: copy the file, and give --store the copy"
            )
        yield
