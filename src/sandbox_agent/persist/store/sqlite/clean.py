"""Taking the traces of what was erased out of the file: its index and its log."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import anyio

from sandbox_agent.persist.sqlite.thread import BUSY_TIMEOUT, SQLiteThread
from sandbox_agent.persist.store.sqlite import erase, index

__all__ = ["Cleaner"]

logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

T = TypeVar("T")

# A reader that holds an old state of the file keeps the log from being cut. Each try holds up commits for
# so long at most, and they go on between the tries: 6 s in all.
_CUTS: Final = 20
_CUT_SECONDS: Final = 0.1
_BETWEEN_CUTS: Final = 0.2
# More slices than merging can take, however much is written meanwhile.
_SPARE_MERGES: Final = 1_000
# Stirring twice separates the index's levels, nearly always; else it is made anew.
_STIRS: Final = 3


class Run(Protocol):
    """Runs something on a connection of the store."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class Cleaner:
    """Cleans the file after an erasure.

    Args:
        thread: the one that writes.
        write: runs work in a transaction of it.
        read: runs work beside it.
    """

    def __init__(self, thread: SQLiteThread, write: Run, read: Run) -> None:
        self._thread = thread
        self._write = write
        self._read = read
        self._lock = anyio.Lock()
        self._begun = 0
        self._done = 0
        self._clean = True

    async def merge(self) -> bool:
        """Take erased words out of the index, so that it gives its pages back; False if there was no end."""
        async with self._lock:
            return await self._merge()

    async def clean(self) -> bool:
        """Take erased words out of the index, and erased pages out of the log.

        Those who wait for the one before them share the next.

        Returns:
            Whether it is done. If not, which is logged, the mark stays in the file: ``finish_deletes`` tries
            again.
        """
        wanted = self._begun + 1
        async with self._lock:
            if self._done < wanted:
                self._begun += 1
                begun = self._begun
                mark = await self._write(erase.get_mark)
                self._clean = await self._merge_or_warn() and await self._cut_or_warn()
                if self._clean:
                    await self._write(lambda connection: erase.clear_mark(connection, mark))
                self._done = begun
            return self._clean

    async def _merge_or_warn(self) -> bool:
        if await self._merge():
            return True
        _warn("its index was written to all the time")
        return False

    async def _cut_or_warn(self) -> bool:
        for number in range(_CUTS):
            if number:
                await anyio.sleep(_BETWEEN_CUTS)
            if await self._thread.run(_checkpoint, transaction=False):
                return True
        _warn("another process reads an old state of it all the time")
        return False

    async def _merge(self) -> bool:
        for _ in range(_STIRS):
            await self._write(lambda connection: index.stir_index(connection, add=True))
            await self._write(lambda connection: index.stir_index(connection, add=False))
            more = await self._write(index.begin_merge)
            if more is not None:
                break
        else:
            await self._write(index.rebuild_index)
            return True
        if not more:
            return True
        pages = await self._read(index.index_pages)
        for _ in range(pages // index.MERGE_PAGES * 4 + _SPARE_MERGES):
            if not await self._write(index.merge_index):
                return True
        return False


def _checkpoint(connection: sqlite3.Connection) -> bool:
    _set_timeout(connection, _CUT_SECONDS)
    try:
        found: tuple[Any, ...] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        _set_timeout(connection, BUSY_TIMEOUT)
    return not found[0]


def _set_timeout(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout={round(seconds * 1000)}").close()


def _warn(reason: str) -> None:
    logger.warning(
        "what was erased is out of sight, but its words are still in the store's file: %s; "
        "it is cleaned within minutes once that ends, or when the server is started next",
        reason,
    )
