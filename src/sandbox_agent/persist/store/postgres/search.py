"""Full text search in PostgreSQL, in bounded time.

Where fewer than 2,000 items have all the words, the best of them come first; of more than that, which is
nothing but common words, the newest, without a rank.
"""

from __future__ import annotations

from typing import Any, Final

import anyio.to_thread

from sandbox_agent.persist.postgres.library import Connection, Row
from sandbox_agent.persist.postgres.link import PostgresLink
from sandbox_agent.persist.searching import Query
from sandbox_agent.persist.sql.ledger import Filters
from sandbox_agent.persist.store.postgres.read import Reader
from sandbox_agent.persist.store.postgres.values import MAX_NUMBER, bounded, from_text, to_text
from sandbox_agent.persist.store.postgres.words import Wanted, namespace_word
from sandbox_agent.persist.store.rows import SearchRow

__all__ = ["search"]

_RARE: Final = 2_000
_MAX_LIMIT: Final = 1_000

_MATCHES: Final = """
SELECT t.key, t.sequence, {rank}
FROM @.store_texts AS t JOIN @.store_sessions AS s ON s.namespace = t.namespace AND s.key = t.key
WHERE t.namespace = $1 AND t.words @@ $2::tsquery AND t.time >= $3 AND t.time < $4 AND NOT s.deleted
  AND ($5::text IS NULL OR s.agent = $5) AND ($6::bigint IS NULL OR t.key = $6){phrases}
ORDER BY t.time DESC, t.sequence DESC LIMIT {limit} OFFSET {offset}"""
_HITS: Final = """
SELECT s.session_id, s.agent, s.title, t.sequence, t.time, t.text
FROM unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY AS page (key, sequence, place)
JOIN @.store_texts AS t ON t.namespace = $1 AND t.key = page.key AND t.sequence = page.sequence
JOIN @.store_sessions AS s ON s.namespace = $1 AND s.key = t.key AND NOT s.deleted
ORDER BY page.place"""


async def search(
    link: PostgresLink, reader: Reader, asked: str, limit: int, offset: int, filters: Filters
) -> list[SearchRow]:
    """Return where all parts of the query are found, best first."""
    query = Query(asked)
    limit, offset = min(max(limit, 0), _MAX_LIMIT), min(max(offset, 0), 2**31)
    if not query or not limit:
        return []
    key: int | None = None
    if filters.session_id is not None:
        name = filters.session_id
        session = await link.run(lambda connection: reader.session(connection, name))
        if session is None:
            return []
        key = session.key
    wanted = Wanted.of(query)
    values: list[Any] = [
        reader.number,
        f"{namespace_word(reader.number)} & {wanted.words}",
        bounded(-MAX_NUMBER if filters.since is None else filters.since),
        bounded(MAX_NUMBER if filters.until is None else filters.until),
        None if filters.agent is None else to_text(filters.agent),
        key,
    ]
    ranked = [*values, wanted.words]

    def statement(*, rank: str, limit: int, offset: int, first: int) -> str:
        phrases = ""
        if wanted.folded:
            long = " AND ".join(
                f"strpos(t.folded, ${first + 1 + at}) > 0" for at in range(len(wanted.folded))
            )
            phrases = f" AND CASE WHEN t.folded IS NULL THEN t.words @@ ${first}::tsquery ELSE {long} END"
        return reader.sql(_MATCHES.format(rank=rank, phrases=phrases, limit=limit, offset=offset))

    phrases = [wanted.phrases, *wanted.folded] if wanted.folded else []

    async def find(connection: Connection) -> list[Row]:
        rank = statement(rank="ts_rank(t.words, $7::tsquery)", limit=_RARE, offset=0, first=8)
        found = await connection.fetch(rank, *ranked, *phrases)
        if len(found) < _RARE:
            found.sort(key=lambda row: -row[2])  # stable: of equals the newest comes first
            return found[offset : offset + limit]
        if offset + limit <= _RARE:
            return found[offset : offset + limit]
        plain = statement(rank="0", limit=limit, offset=offset, first=7)
        return await connection.fetch(plain, *values, *phrases)

    page = await link.run(find)
    keys, sequences = [row[0] for row in page], [row[1] for row in page]

    async def tell(connection: Connection) -> list[Row]:
        return await connection.fetch(reader.sql(_HITS), reader.number, keys, sequences)

    rows = await link.run(tell) if page else []
    return await anyio.to_thread.run_sync(_hits, query, rows)


def _hits(query: Query, rows: list[Row]) -> list[SearchRow]:
    found: list[SearchRow] = []
    for session_id, agent, title, sequence, time, text in rows:
        snippet = query.snippet(text)
        if snippet is not None:
            shown = None if title is None else from_text(title)
            found.append(SearchRow(from_text(session_id), from_text(agent), shown, sequence, time, snippet))
    return found
