"""The server's store in PostgreSQL: one namespace of tables that several servers share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio.to_thread

from sandbox_agent.persist.postgres.dialect import PostgresDatabase, PostgresDialect
from sandbox_agent.persist.postgres.ledger import IndexedText, PostgresLedger, index_text
from sandbox_agent.persist.postgres.link import Connection, PostgresLink
from sandbox_agent.persist.postgres.owner import Owner
from sandbox_agent.persist.postgres.schema import DEFAULT_SCHEMA, check_version, migrate
from sandbox_agent.persist.sql.ledger import Filters
from sandbox_agent.persist.sql.store import SqlSessionStore
from sandbox_agent.persist.store import SearchRow, TextRow

_MAX_SIZE: Final = 6
# Longer texts are split into words in a thread.
_LONG_TEXTS: Final = 16 * 1024


class PostgresSessionStore(SqlSessionStore):
    """Implements SessionStore.

    Nothing is connected to before ``open``. After an outage the same object works again.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``.
        namespace: which sessions these are; one server at a time has it.
        schema: where the tables are; made if there is none.
        max_size: connections at most, beside the one that holds the namespace.
        read_only: read another server's sessions: nothing is made, migrated, owned or written.
    """

    def __init__(
        self,
        connection_string: str,
        *,
        namespace: str,
        schema: str = DEFAULT_SCHEMA,
        max_size: int = _MAX_SIZE,
        read_only: bool = False,
    ) -> None:
        async def prepare(connection: Connection) -> None:
            await self._database.dialect.run(
                connection, partial(check_version if read_only else migrate, schema)
            )

        self._schema = schema
        self._link = PostgresLink(
            connection_string, max_size=max_size, prepare=prepare, name="sandbox-agent server"
        )
        self._owner = Owner(self._link, schema, namespace)
        self._database = PostgresDatabase(self._link, PostgresDialect(schema))
        self._tables = PostgresLedger(self._owner)
        super().__init__(self._database, self._tables)
        self._read_only = read_only

    @property
    def trouble(self) -> str | None:
        """Why the database can't be used now, or the namespace is another server's; None while it works."""
        return self._owner.replaced or self._owner.trouble

    async def open(self) -> None:
        """Make or migrate the tables, and acquire the namespace.

        Raises:
            PersistError: another server has it, a newer version made the tables, or the database fails.
        """
        await (self._owner.find() if self._read_only else self._owner.acquire())
        self._database.dialect = PostgresDialect(
            self._schema, namespace=self._owner.number, generation=self._owner.generation
        )

    async def close(self) -> None:
        """Release the namespace and close the connections. Safe to call twice."""
        await self._owner.release()
        await self._link.close()

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares: its data, with an allowance for the index."""
        return await self._database.read(self._tables.used_bytes)

    async def _prepare_texts(self, texts: Sequence[TextRow]) -> Sequence[tuple[TextRow, IndexedText]]:
        if sum(len(row.text) for row in texts) > _LONG_TEXTS:
            return await anyio.to_thread.run_sync(self._index, texts)
        return self._index(texts)

    def _index(self, texts: Sequence[TextRow]) -> Sequence[tuple[TextRow, IndexedText]]:
        return [(row, index_text(row.text, self._owner.number)) for row in texts]

    async def _search(self, query: str, limit: int, offset: int, filters: Filters) -> list[SearchRow]:
        # Most servers never search.
        from sandbox_agent.persist.postgres.search import search_store

        return await search_store(self._database, self._owner.number, query, limit, offset, filters)
