"""Full-text search of the server's store in PostgreSQL, in bounded time.

If fewer than 2,000 items have all the words, the best of them come first; of more than that, which is
nothing but common words, the newest, without a rank.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import anyio.to_thread

from sandbox_agent.persist.postgres.dialect import digest, original, storable
from sandbox_agent.persist.postgres.ledger import MAX_WORD, namespace_word
from sandbox_agent.persist.searching import Query as Words
from sandbox_agent.persist.sql.ledger import MAX_NUMBER, Filters, bounded
from sandbox_agent.persist.sql.work import Database, Query, Row, Work
from sandbox_agent.persist.store import SearchRow

_RARE: Final = 2_000
_MAX_LIMIT: Final = 1_000

_MATCHES: Final = """
SELECT t.key, t.sequence, {rank}
FROM {{store_texts}} AS t JOIN {{store_sessions}} AS s ON {{mine:s}} s.key = t.key
WHERE {{mine:t}} t.words @@ $1::tsquery AND t.time >= $2 AND t.time < $3 AND NOT s.deleted
  AND ($4::text IS NULL OR s.agent = $4) AND ($5::bytea IS NULL OR s.session_digest = $5){phrases}
ORDER BY t.time DESC, t.sequence DESC LIMIT {limit} OFFSET {offset}
"""
_HITS: Final = """
SELECT s.session_id, s.agent, s.title, t.sequence, t.time, t.text
FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS page (key, sequence, place)
JOIN {store_texts} AS t ON {mine:t} t.key = page.key AND t.sequence = page.sequence
JOIN {store_sessions} AS s ON {mine:s} s.key = t.key AND NOT s.deleted
ORDER BY page.place
"""


async def search(
    database: Database, namespace: int, query: str, limit: int, offset: int, filters: Filters
) -> list[SearchRow]:
    """Return where all parts of the query are found, best first."""
    words = Words(query)
    limit, offset = min(max(limit, 0), _MAX_LIMIT), min(max(offset, 0), 2**31)
    if not words or not limit:
        return []
    rows = await database.read(partial(_find, namespace, words, limit, offset, filters))
    return await anyio.to_thread.run_sync(_hits, words, rows)


def _find(namespace: int, words: Words, limit: int, offset: int, filters: Filters) -> Work[list[Row]]:
    parts = [[word[:MAX_WORD] for word in part] for part in words.parts]
    all_words = " & ".join(dict.fromkeys(f"'{word}'" for part in parts for word in part))
    values: list[Any] = [
        f"{namespace_word(namespace)} & {all_words}",
        bounded(-MAX_NUMBER if filters.since is None else filters.since),
        bounded(MAX_NUMBER if filters.until is None else filters.until),
        None if filters.agent is None else storable(filters.agent),
        None if filters.session_id is None else digest(filters.session_id),
    ]
    phrases = [part for part in parts if len(part) > 1]
    # In an item that is too long for the places of its words, phrases are searched in the words as text.
    long = [f" {' '.join(part)} " for part in phrases]
    placed = " & ".join("(" + " <-> ".join(f"'{word}'" for word in part) + ")" for part in phrases)
    wanted = [placed, *long] if phrases else []
    rank = _matches("ts_rank(t.words, $6::tsquery)", len(long), first=7, limit=_RARE, offset=0)
    found: list[Row] = yield Query(rank, (*values, all_words, *wanted))
    if len(found) == _RARE and offset + limit > _RARE:
        plain = _matches("0", len(long), first=6, limit=limit, offset=offset)
        page = yield Query(plain, (*values, *wanted))
    else:
        if len(found) < _RARE:
            found.sort(key=lambda row: -row[2])  # stable: of equals the newest comes first
        page = found[offset : offset + limit]
    if not page:
        return []
    return (yield Query(_HITS, ([row[0] for row in page], [row[1] for row in page])))


def _matches(rank: str, long: int, *, first: int, limit: int, offset: int) -> str:
    phrases = ""
    if long:
        in_text = " AND ".join(f"strpos(t.folded, ${first + 1 + at}) > 0" for at in range(long))
        phrases = f" AND CASE WHEN t.folded IS NULL THEN t.words @@ ${first}::tsquery ELSE {in_text} END"
    return _MATCHES.format(rank=rank, phrases=phrases, limit=limit, offset=offset)


def _hits(words: Words, rows: list[Row]) -> list[SearchRow]:
    found: list[SearchRow] = []
    for session_id, agent, title, sequence, time, text in rows:
        snippet = words.snippet(text)
        if snippet is not None:
            shown = None if title is None else original(title)
            found.append(SearchRow(original(session_id), original(agent), shown, sequence, time, snippet))
    return found
