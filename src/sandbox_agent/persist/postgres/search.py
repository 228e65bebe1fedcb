"""Full-text search in PostgreSQL, of the SDK's tables and of the server's.

In the SDK's, the index finds texts that have all the words; whether they occur as the query wants it is
checked in the texts, so that every driver finds the same. The newest come first.

In the server's, the time is bounded: if fewer than 2,000 items have all the words, the best of them come
first; of more than that, which is nothing but common words, the newest, without a rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import anyio.to_thread

from sandbox_agent.persist.folding import Said
from sandbox_agent.persist.postgres.dialect import digest, original, storable
from sandbox_agent.persist.postgres.ledger import MAX_WORD, namespace_word
from sandbox_agent.persist.searching import Query as Words
from sandbox_agent.persist.searching import words_of
from sandbox_agent.persist.sql.ledger import MAX_NUMBER, Filters, bounded
from sandbox_agent.persist.sql.texts import update_texts
from sandbox_agent.persist.sql.work import Database, Query, Row, Work
from sandbox_agent.persist.store import SearchRow
from sandbox_agent.persist.store.values import clean
from sandbox_agent.wire.sessions import SearchHit

# The SDK's tables: texts that are read in one go.
_CANDIDATES: Final = 100
# A word of PostgreSQL's has 2,046 bytes at most: longer ones are found by their beginning.
_MAX_WORD: Final = 400
# And all words of a text have 1 MB with what it adds to each: a text with more is always read.
_MAX_WORDS: Final = 700_000
_WORD_OVERHEAD: Final = 8

# A deletion waits for it, and it for a deletion.
_LOCK: Final = "SELECT 1 FROM {session_writers} WHERE session_id = $1 FOR KEY SHARE"
_REMOVE: Final = "DELETE FROM {session_texts} WHERE session_id = $1 AND event_index >= $2"
_ADD: Final = """
INSERT INTO {session_texts} (session_id, event_index, created_at, body, words)
VALUES ($1, $2, $3, $4, array_to_tsvector($5::text[]))
ON CONFLICT (session_id, event_index) DO UPDATE
SET created_at = excluded.created_at, body = excluded.body, words = excluded.words
"""
_CANDIDATE: Final = """
SELECT text.session_id, session.agent, text.event_index, text.created_at, text.body
FROM {session_texts} AS text JOIN {sessions} AS session ON session.id = text.session_id
WHERE (text.words @@ $1::text::tsquery OR text.words IS NULL)
  AND ($2::text IS NULL OR text.session_id = $2)
  AND ($3::bigint IS NULL OR (text.created_at, text.session_id COLLATE "C", text.event_index) < ($3, $4, $5))
ORDER BY text.created_at DESC, text.session_id COLLATE "C" DESC, text.event_index DESC
LIMIT $6
"""

# The server's tables.
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


class _Texts:
    """Implements ``sql.texts.TextIndex``."""

    def prepare(self, texts: Sequence[Said]) -> list[tuple[int, int, str, list[str] | None]]:
        found: list[tuple[int, int, str, list[str] | None]] = []
        for first, time, text in texts:
            body = clean(text).replace("\0", " ")
            words = sorted({word[:_MAX_WORD] for word in words_of(body)})
            size = sum(len(word.encode()) + _WORD_OVERHEAD for word in words)
            found.append((first, time, body, words if size <= _MAX_WORDS else None))
        return found

    def lock(self, session_id: str) -> Work[None]:
        yield Query(_LOCK, (session_id,))

    def remove(self, session_id: str, first: int) -> Work[None]:
        yield Query(_REMOVE, (session_id, first))

    def add(self, session_id: str, texts: Sequence[Any]) -> Work[None]:
        for text in texts:
            yield Query(_ADD, (session_id, *text))


async def search_events(
    database: Database, query: str, session_id: str | None, limit: int
) -> list[SearchHit]:
    """Return where all parts of the query are found, the newest first.

    Raises:
        PersistError: the store failed.
    """
    wanted = Words(query)
    if not wanted or (session_id is not None and "\0" in session_id):
        return []
    await update_texts(database, _Texts(), session_id)
    match = _all_of(sorted({word[:_MAX_WORD] for part in wanted.parts for word in part}))
    hits: list[SearchHit] = []
    last: Sequence[Any] = (None, None, None)
    while True:
        rows = await database.read(partial(_candidates, match, session_id, last))
        for owner, agent, index, time, body in rows:
            snippet = wanted.snippet(body)
            if snippet is not None:
                hits.append(
                    SearchHit(session_id=owner, agent=agent, sequence=index, time=time, snippet=snippet)
                )
                if len(hits) == limit:
                    return hits
        if len(rows) < _CANDIDATES:
            return hits
        last = (rows[-1][3], rows[-1][0], rows[-1][2])


def _candidates(match: str, session_id: str | None, last: Sequence[Any]) -> Work[list[Row]]:
    return (yield Query(_CANDIDATE, (match, session_id, *last, _CANDIDATES)))


async def search_store(
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
    all_words = _all_of(dict.fromkeys(word for part in parts for word in part))
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
    placed = " & ".join(f"({_all_of(part, ' <-> ')})" for part in phrases)
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


def _all_of(words: Iterable[str], joined: str = " & ") -> str:
    """Return the tsquery for all of the words; ``<->`` finds them one after another."""
    return joined.join(f"'{word}'" for word in words)
