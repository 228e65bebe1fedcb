"""Searching a PostgreSQL store: its index of words is brought up to date, then queried.

The index finds texts that have all the words; whether they occur as the query wants it is checked in the
texts, so that every driver finds the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from sandbox_agent.persist.folding import Said
from sandbox_agent.persist.searching import Query as Words
from sandbox_agent.persist.searching import words_of
from sandbox_agent.persist.sql.ledger import clean
from sandbox_agent.persist.sql.texts import update_texts
from sandbox_agent.persist.sql.work import Database, Query, Row, Work
from sandbox_agent.wire.sessions import SearchHit

# Texts that are read in one go.
_CANDIDATES: Final = 100
# A word of PostgreSQL's has 2,046 bytes at most: longer ones are found by their beginning.
_MAX_WORD: Final = 400
# And all words of a text have 1 MB with what it adds to each: a text with more is always read.
_MAX_WORDS: Final = 700_000
_WORD_OVERHEAD: Final = 8

# A deletion waits for it, and it for a deletion.
_LOCK: Final = "SELECT 1 FROM {writers} WHERE session_id = $1 FOR KEY SHARE"
_REMOVE: Final = "DELETE FROM {texts} WHERE session_id = $1 AND event_index >= $2"
_ADD: Final = """
INSERT INTO {texts} (session_id, event_index, created_at, body, words)
VALUES ($1, $2, $3, $4, array_to_tsvector($5::text[]))
ON CONFLICT (session_id, event_index) DO UPDATE
SET created_at = excluded.created_at, body = excluded.body, words = excluded.words
"""
_CANDIDATE: Final = """
SELECT text.session_id, session.agent, text.event_index, text.created_at, text.body
FROM {texts} AS text JOIN {sessions} AS session ON session.id = text.session_id
WHERE (text.words @@ $1::text::tsquery OR text.words IS NULL)
  AND ($2::text IS NULL OR text.session_id = $2)
  AND ($3::bigint IS NULL OR (text.created_at, text.session_id COLLATE "C", text.event_index) < ($3, $4, $5))
ORDER BY text.created_at DESC, text.session_id COLLATE "C" DESC, text.event_index DESC
LIMIT $6
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
    words = sorted({word[:_MAX_WORD] for part in wanted.parts for word in part})
    match = " & ".join(f"'{word}'" for word in words)
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
