"""``--store``: where the server keeps what is more than its memory."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import anyio

from sandbox_agent.agents.layout import data_dir
from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.persist.segments import FileSegments, SQLiteSegments
from sandbox_agent.persist.sqlite_thread import TEMPORARY, SQLiteThread
from sandbox_agent.persist.store.base import SessionStore
from sandbox_agent.persist.store.sqlite import SQLiteSessionStore
from sandbox_agent.server.spill import Spill

__all__ = ["MEMORY_STORE", "Store", "check_store", "default_store", "open_store"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How often it is looked for deletes that have left something in the file; at the start, too.
FINISH_SECONDS = 60.0
MEMORY_STORE = "memory"
_SQLITE = "sqlite:"


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
    if store == MEMORY_STORE or (store.startswith(_SQLITE) and Path(store.removeprefix(_SQLITE)).name):
        return store
    raise InvalidRequestError(f"store '{store}' is of no known kind: give 'sqlite:PATH' or 'memory'")


@asynccontextmanager
async def open_store(store: str) -> AsyncGenerator[Store]:
    """Open the store and close it at the end.

    Raises:
        InvalidRequestError: it names no kind of store.
        PersistError: it can't be opened, or another server has it.
    """
    if check_store(store) == MEMORY_STORE:
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
            # No task group: what fails in the block is to be raised as it is.
            finishing = asyncio.ensure_future(_finish_deletes(sessions))
            try:
                yield Store(segments, sessions)
            finally:
                finishing.cancel()
                await asyncio.wait([finishing])
        finally:
            await searcher.close()
            await reader.close()
            await writer.close()


async def _finish_deletes(sessions: SQLiteSessionStore) -> None:
    """End the deletes that a former run had begun, and what could not be cleaned at once."""
    while True:
        try:
            await sessions.finish_deletes()
        except PersistError as error:
            logger.warning("what was deleted is still in the file, the next try is in a minute (%s)", error)
        await anyio.sleep(FINISH_SECONDS)


def _lean(connection: sqlite3.Connection) -> None:
    # A log is written at its end, so few pages are warm; a sandbox has better use for the memory.
    connection.execute("PRAGMA cache_size=-4096")


@contextmanager
def _owned(path: Path) -> Generator[None]:
    """Hold the store against other servers; the kernel lets go of it however this one ends."""
    lock = path.with_name(path.name + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("wb")
    except OSError as error:
        raise PersistError(
            f"the store '{path}' can't be opened: {error.strerror}: {error.filename}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PersistError(
                f"the store '{path}' belongs to another running server: stop it, or give --store another path"
            ) from error
        yield
