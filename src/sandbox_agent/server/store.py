"""``--store``: opens the store of the server, and keeps others from using it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import anyio

from sandbox_agent.agents.launch import data_dir
from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.persist.open import StoreURL, open_session_store, parse_store_url
from sandbox_agent.persist.private import make_private_folder, open_private, tighten
from sandbox_agent.persist.segments import SQLiteSegments, temporary_segments
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import TEMPORARY, SQLiteThread
from sandbox_agent.persist.store import SessionStore
from sandbox_agent.server.agents.spill import Spill

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How often interrupted deletes are finished; at the start, too.
FINISH_SECONDS = 60.0
# How often an idle store is checked, for health; and a store that fails.
CHECK_SECONDS = 5.0
CHECK_FAILED_SECONDS = 0.5
# How long the end of the server waits for the connection to a database to be closed.
CLOSE_SECONDS = 5.0
# A store that another server uses is tried again after so long.
LOCK_SECONDS = 0.1
MEMORY_STORE = "memory"
_SQLITE = "sqlite:"
# In the platform's folder for data; holds the namespace of this machine's server.
_NAMESPACE_FILE: Final = "store-namespace"
_MAX_NAMESPACE: Final = 200


class Store(NamedTuple):
    """What a server stores: the feeds that memory has no room for, and its sessions."""

    spill: Spill
    sessions: SessionStore


def default_store() -> str:
    """Return the default store: a file in the platform's folder for data."""
    return f"{_SQLITE}{data_dir() / 'server.db'}"


def check_store(store: str) -> str:
    """Check the value of ``--store`` and return its URL.

    Raises:
        InvalidRequestError: it does not name a kind of store.
    """
    url = parse_store_url(store)
    if url.encrypted:
        raise InvalidRequestError(
            f"the store '{url.shown}' is for the SDK: the server does not encrypt, so leave 'encrypted+' out"
        )
    if url.path is None:
        return url.where
    if not url.path.name:
        raise InvalidRequestError(f"the store '{url.shown}' has no file name: use 'sqlite:PATH'")
    return f"{_SQLITE}{url.where}"


def check_namespace(namespace: str) -> str:
    """Check the value of ``--store-namespace`` and return it.

    Raises:
        InvalidRequestError: it is empty, long, or not printable.
    """
    if not namespace.strip() or len(namespace) > _MAX_NAMESPACE or not namespace.isprintable():
        raise InvalidRequestError(f"a store's namespace must have 1 to {_MAX_NAMESPACE} printable characters")
    return namespace


def default_namespace() -> str:
    """Return the namespace of this machine's server, stored in the platform's folder for data.

    Raises:
        PersistError: it can't be stored.
    """
    path = data_dir() / _NAMESPACE_FILE
    try:
        with suppress(FileNotFoundError):
            return check_namespace(path.read_text().strip())
        make_private_folder(path.parent)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=_NAMESPACE_FILE) as file:
            os.fchmod(file.fileno(), 0o600)  # The umask may have removed the owner's bits.
            file.write(f"server-{secrets.token_hex(8)}\n")
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):  # another server of this machine was faster
                os.link(file.name, path)
        return check_namespace(path.read_text().strip())
    except (OSError, UnicodeError, InvalidRequestError) as error:
        raise PersistError(
            f"the namespace of this server's sessions can't be stored in '{path}' ({error}): "
            "use --store-namespace NAME"
        ) from error


def secrets_of(store: str) -> Sequence[str]:
    """Return the parts of a store's URL that must not be logged: all of it, and its password."""
    if "://" not in store:
        return []
    found = [store]
    with suppress(ValueError):
        url = urlsplit(store)
        if url.password:
            found += [url.password, unquote(url.password)]
    return found


def files_of(store: str) -> Sequence[Path]:
    """Return the files of a store of ``check_store``, which may not exist yet; none for a database."""
    if not store.startswith(_SQLITE):
        return []
    path = _path_of(store)
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", ".lock")]


def _path_of(store: str) -> Path:
    return Path(os.path.expanduser(store.removeprefix(_SQLITE)))  # noqa: PTH111 - no I/O


@asynccontextmanager
async def open_store(store: str, *, namespace: str | None = None, wait: float = 0) -> AsyncGenerator[Store]:
    """Open the store of ``--store`` and close it at the end.

    Without a namespace, this machine's is that of the server's sessions in a shared database. A file that
    another server uses is waited for, ``wait`` seconds.

    Raises:
        InvalidRequestError: the value does not name a kind of store, or the store has no namespaces.
        PersistError: the store can't be opened, or another server uses it.
    """
    store = check_store(store)
    url = parse_store_url(store)
    if url.kind in ("postgres", "redis"):
        async with _open_remote(url, namespace or default_namespace()) as opened:
            yield opened
        return
    if namespace is not None:
        raise InvalidRequestError(
            f"the store '{url.shown}' has no namespaces: leave --store-namespace out, or use a database "
            "as the store"
        )
    if store == MEMORY_STORE:
        # SQLite's own temporary file holds what memory has no room for; it is gone at the end.
        thread = SQLiteThread(TEMPORARY, prepare=_limit_cache)
        sessions = SQLiteSessionStore(thread, thread)
        try:
            await sessions.open()
            async with temporary_segments() as segments:
                yield Store(segments, sessions)
        finally:
            await sessions.close()
        return
    path = _path_of(store)
    async with _owned(path, wait):
        writer = SQLiteThread(path, prepare=_limit_cache, same_file=True)
        reader, searcher = (SQLiteThread(path, read_only=True, same_file=True) for _ in range(2))
        sessions = SQLiteSessionStore(writer, reader, searcher)
        try:
            segments = SQLiteSegments(writer, reader)
            await segments.open()
            await sessions.open()
            async with (
                _in_background(partial(_finish_deletes, sessions)),
                _in_background(partial(_check, sessions)),
            ):
                yield Store(segments, sessions)
        finally:
            await sessions.close()


@asynccontextmanager
async def _open_remote(url: StoreURL, namespace: str) -> AsyncGenerator[Store]:
    sessions = open_session_store(url, namespace=namespace)
    try:
        await sessions.open()
        # Feeds end with their server: they stay on its machine.
        async with _in_background(partial(_finish_deletes, sessions)), temporary_segments() as segments:
            yield Store(segments, sessions)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_SECONDS):
            await sessions.close()


@asynccontextmanager
async def _in_background(work: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Run work during the block, without a task group, which would wrap the block's errors in a group."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await work()

    running = asyncio.ensure_future(run())
    try:
        yield
    finally:
        scope.cancel()  # A scope cancels repeatedly: a client library may swallow one cancellation.
        await asyncio.wait([running])


async def _finish_deletes(sessions: SessionStore) -> None:
    """Finish deletes that an earlier run had started, or that could not be finished at once."""
    while True:
        try:
            await sessions.finish_deletes()
        except PersistError as error:
            logger.warning("deleted data is still in the store, the next attempt is in a minute (%s)", error)
        await anyio.sleep(FINISH_SECONDS)


async def _check(sessions: SessionStore) -> None:
    """Keep the reported health of the store up to date, also while nothing is stored."""
    while True:
        before = sessions.trouble
        await anyio.sleep(CHECK_SECONDS if before is None else CHECK_FAILED_SECONDS)
        await sessions.check()
        if before is None and sessions.trouble is not None:
            logger.error("the store is degraded: %s", sessions.trouble)
        elif before is not None and sessions.trouble is None:
            logger.warning("the store works again")


def _limit_cache(connection: sqlite3.Connection) -> None:
    # A log is written at its end, so few pages are in use; the memory serves a sandbox better elsewhere.
    connection.execute("PRAGMA cache_size=-4096")


@asynccontextmanager
async def _owned(path: Path, wait: float) -> AsyncGenerator[None]:
    """Lock the store against other servers; the kernel releases the lock however this server ends."""
    with _open_lock(path) as file:
        deadline = anyio.current_time() + wait
        while not _lock(file):
            if anyio.current_time() >= deadline:
                raise PersistError(
                    f"the store '{path}' belongs to another running server: stop it, or give --store another "
                    "path"
                )
            await anyio.sleep(LOCK_SECONDS)
        _check_links(path)
        yield


def _open_lock(path: Path) -> IO[bytes]:
    try:
        # One lock, whatever symbolic links lead to the file.
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise PersistError(f"the store '{path}' is not a file: name a file")
        lock = target.with_name(target.name + ".lock")
        make_private_folder(lock.parent)
        tighten([lock])
        return open(lock, "wb", opener=open_private)
    except OSError as error:
        raise PersistError(
            f"the store '{path}' can't be opened: {error.strerror}: {error.filename}"
        ) from error
    except RuntimeError as error:
        raise PersistError(
            f"the store '{path}' can't be opened, its symbolic links form a loop: {error}"
        ) from error


def _check_links(path: Path) -> None:
    if path.is_file() and path.stat().st_nlink > 1:
        raise PersistError(
            f"the store '{path}' has several names (hard links): each would get a log of its own "
            "and damage it: copy the file, and use the copy for --store"
        )


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
