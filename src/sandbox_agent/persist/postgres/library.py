"""What is used of asyncpg, typed, and the one place that imports it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from sandbox_agent.errors import PersistError

# A row of a result: its values by position.
Row = Sequence[Any]


class Connection(Protocol):
    """``asyncpg.Connection``, or a pool's proxy of one."""

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        """Run statements and return the last one's status; without values several may be joined by ;."""
        ...

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Row]:
        """Run a statement and return its rows."""
        ...

    async def fetchrow(self, query: str, *args: object, timeout: float | None = None) -> Row | None:
        """Run a statement and return its first row, or None."""
        ...

    async def fetchval(self, query: str, *args: object, timeout: float | None = None) -> Any:
        """Run a statement and return the first value of its first row, or None."""
        ...

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False
    ) -> AbstractAsyncContextManager[object]:
        """Return a transaction to enter: committed at its end, rolled back on an exception."""
        ...

    def get_server_pid(self) -> int:
        """Return the process id that the server named at the log-in."""
        ...

    def is_closed(self) -> bool:
        """Tell whether the connection is closed."""
        ...

    async def add_listener(self, channel: str, callback: Callable[[Any, int, str, str], None], /) -> None:
        """LISTEN; the callback gets (connection, pid, channel, payload)."""
        ...

    async def remove_listener(self, channel: str, callback: Callable[[Any, int, str, str], None], /) -> None:
        """UNLISTEN."""
        ...

    def add_termination_listener(self, callback: Callable[[Any], None], /) -> None:
        """Call back when the connection has ended."""
        ...

    def remove_termination_listener(self, callback: Callable[[Any], None], /) -> None:
        """Unregister the callback."""
        ...

    def terminate(self) -> None:
        """Close the connection without waiting for the server."""
        ...


class Pool(Protocol):
    """``asyncpg.Pool``."""

    def acquire(self, *, timeout: float | None = None) -> Any:
        """Return what can be awaited or entered for a connection."""
        ...

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give a connection back."""
        ...

    async def close(self) -> None:
        """Close all connections after their work."""
        ...

    async def expire_connections(self) -> None:
        """Have every connection replaced before its next use."""
        ...

    def terminate(self) -> None:
        """Close all connections at once."""
        ...

    def get_max_size(self) -> int:
        """Return how many connections it may open."""
        ...


def load_asyncpg() -> Any:
    """Return the module asyncpg.

    Raises:
        PersistError: it is not installed.
    """
    try:
        return importlib.import_module("asyncpg")
    except ImportError as error:
        raise PersistError(
            "PostgreSQL needs the package asyncpg, which is not installed: "
            "pip install 'sandbox-agent-py[postgres]'"
        ) from error
