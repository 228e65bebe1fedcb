"""Searching a PostgreSQL store: its index of words is brought up to date, then asked.

The index finds texts that have all the words; whether they stand as the query wants it is looked up in the
texts, so that every driver finds the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import anyio.to_thread

from sandbox_agent.persist.folding import Folder, Said
from sandbox_agent.persist.postgres.library import Connection, Row
from sandbox_agent.persist.postgres.link import PostgresLink
from sandbox_agent.persist.postgres.rows import EVENT_COLUMNS, to_event
from sandbox_agent.persist.postgres.schema import Tables
from sandbox_agent.persist.searching import Query, words_of
from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.sessions import SearchHit

__all__ = ["search"]

# Events that are folded, and texts that are looked through, at one go.
_SLICE: Final = 1_000
_CANDIDATES: Final = 100
# What PostgreSQL takes for a word at most is 2,046 bytes: longer ones are found by their beginning.
_MAX_WORD: Final = 400
# And for all words of a text, 1 MB with what it adds to each: a text with more is always looked through.
_MAX_WORDS: Final = 700_000
_WORD_OVERHEAD: Final = 8

_STALE: Final = """
SELECT session.id, searched.resume_at, searched.last_index, searched.last_id
FROM {sessions} AS session LEFT JOIN {searched} AS searched ON searched.session_id = session.id
WHERE ($1::text IS NULL OR session.id = $1) AND (
  coalesce(searched.last_index, 0) IS DISTINCT FROM coalesce((
    SELECT max(event_index) FROM {events} WHERE session_id = session.id
  ), 0)
  OR (searched.last_id IS NOT NULL AND NOT EXISTS (
    SELECT FROM {events} WHERE session_id = session.id AND event_index = searched.last_index
      AND id = searched.last_id
  ))
)
"""
_EVENTS: Final = """
SELECT {columns} FROM {events} WHERE session_id = $1 AND event_index >= $2
ORDER BY event_index LIMIT $3
"""
_IS_THERE: Final = "SELECT 1 FROM {events} WHERE session_id = $1 AND event_index = $2 AND id = $3"
# A deletion waits for it, and it for a deletion.
_HOLD: Final = "SELECT 1 FROM {writers} WHERE session_id = $1 FOR KEY SHARE"
_EXTENT: Final = "SELECT resume_at, last_index, last_id FROM {searched} WHERE session_id = $1 FOR UPDATE"
_FIRST_EXTENT: Final = """
INSERT INTO {searched} (session_id, resume_at, last_index, last_id) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING 1
"""
_NEXT_EXTENT: Final = """
UPDATE {searched} SET resume_at = $2, last_index = $3, last_id = $4 WHERE session_id = $1 RETURNING 1
"""
_ERASE: Final = "DELETE FROM {texts} WHERE session_id = $1 AND event_index >= $2"
_FORGET: Final = "DELETE FROM {searched} WHERE session_id = $1"
_KEEP: Final = """
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


class _Extent(NamedTuple):
    resume_at: int
    last_index: int
    last_id: str


async def search(
    link: PostgresLink, tables: Tables, query: str, session_id: str | None, limit: int
) -> list[SearchHit]:
    """Return where all parts of the query are found, the newest first.

    Raises:
        PersistError: the store failed.
    """
    wanted = Query(query)
    if not wanted or (session_id is not None and "\0" in session_id):
        return []
    return await _Search(link, tables).run(wanted, session_id, limit)


class _Search:
    def __init__(self, link: PostgresLink, tables: Tables) -> None:
        self._link = link
        self._names = {
            "sessions": tables.sessions,
            "events": tables.events,
            "writers": tables.writers,
            "texts": tables.texts,
            "searched": tables.searched,
            "columns": EVENT_COLUMNS,
        }

    async def run(self, query: Query, session_id: str | None, limit: int) -> list[SearchHit]:
        for row in await self._fetch(_STALE, session_id):
            await self._fold(row[0], None if row[1] is None else _Extent(row[1], row[2], row[3]))
        words = sorted({word[:_MAX_WORD] for part in query.parts for word in part})
        match = " & ".join(f"'{word}'" for word in words)
        hits: list[SearchHit] = []
        last: Sequence[Any] = (None, None, None)
        while True:
            rows = await self._fetch(_CANDIDATE, match, session_id, *last, _CANDIDATES)
            for owner, agent, index, time, body in rows:
                snippet = query.snippet(body)
                if snippet is not None:
                    hits.append(
                        SearchHit(session_id=owner, agent=agent, sequence=index, time=time, snippet=snippet)
                    )
                    if len(hits) == limit:
                        return hits
            if len(rows) < _CANDIDATES:
                return hits
            last = (rows[-1][3], rows[-1][0], rows[-1][2])

    async def _fold(self, session_id: str, known: _Extent | None) -> None:
        """Bring a session's texts up to date, or leave it where another search was quicker."""
        if known is not None and not await self._fetch(
            _IS_THERE, session_id, known.last_index, known.last_id
        ):
            # Made anew under the same id by a program that knows nothing of the texts.
            if not await self._link.transaction(self._keeping(session_id, known, None, 0, [])):
                return
            known = None
        folder = Folder()
        start = replaced_from = known.resume_at if known else 0
        while True:
            rows = await self._fetch(_EVENTS, session_id, start, _SLICE + 1)
            if not rows:
                return
            is_end = len(rows) <= _SLICE
            last = to_event(rows[:_SLICE][-1])
            texts = await anyio.to_thread.run_sync(
                _folded, folder, [to_event(row) for row in rows[:_SLICE]], is_end
            )
            extent = _Extent(folder.resume_at, last.event_index, last.id)
            keep = self._keeping(session_id, known, extent, replaced_from, texts)
            if not await self._link.transaction(keep) or is_end:
                return
            # What is kept from here on is behind it.
            known, start, replaced_from = extent, last.event_index + 1, last.event_index + 1

    def _keeping(
        self,
        session_id: str,
        known: _Extent | None,
        extent: _Extent | None,
        replaced_from: int,
        texts: list[tuple[Said, list[str] | None]],
    ) -> Any:
        async def keep(connection: Connection) -> bool:
            """Keep a slice's texts, unless somebody has changed what they are built on."""
            await connection.fetch(self._sql(_HOLD), session_id)
            row = await connection.fetchrow(self._sql(_EXTENT), session_id)
            if (None if row is None else _Extent(*row)) != known:
                return False
            if extent is None:
                await connection.execute(self._sql(_ERASE), session_id, 0)
                await connection.execute(
                    self._sql("DELETE FROM {searched} WHERE session_id = $1"), session_id
                )
                return True
            place = (session_id, extent.last_index, extent.last_id)
            if not await connection.fetch(self._sql(_IS_THERE), *place):
                return False
            statement = _FIRST_EXTENT if known is None else _NEXT_EXTENT
            if not await connection.fetch(self._sql(statement), session_id, *extent):
                return False
            await connection.execute(self._sql(_ERASE), session_id, replaced_from)
            for said, words in texts:
                values = (said.first, said.time, said.text, words)
                await connection.execute(self._sql(_KEEP), session_id, *values)
            return True

        return keep

    def _sql(self, statement: str) -> str:
        return statement.format(**self._names)

    async def _fetch(self, statement: str, *values: Any) -> list[Row]:
        async def fetch(connection: Connection) -> list[Row]:
            return await connection.fetch(self._sql(statement), *values)

        return await self._link.run(fetch)


def _folded(folder: Folder, events: list[SessionEvent], is_end: bool) -> list[tuple[Said, list[str] | None]]:
    """Return the texts, as PostgreSQL can hold them, and the words of each."""
    for event in events:
        folder.take(event)
    said = [*folder.finished(), *(folder.unfinished() if is_end else ())]
    texts = [
        one._replace(text=one.text.encode("utf-8", "replace").decode().replace("\0", " ")) for one in said
    ]
    return [(text, _words(text.text)) for text in texts]


def _words(text: str) -> list[str] | None:
    words = sorted({word[:_MAX_WORD] for word in words_of(text)})
    size = sum(len(word.encode()) + _WORD_OVERHEAD for word in words)
    return words if size <= _MAX_WORDS else None
