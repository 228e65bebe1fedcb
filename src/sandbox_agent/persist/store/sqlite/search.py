"""Full text search in bounded time.

Ranking by bm25 reads every occurrence of each word, which takes long for words that are everywhere. So the
rank comes from the rare words of a query alone (those in fewer than 2,000 items), of which there are few
candidates; a query of nothing but common words finds the newest first, without a rank.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Any, Final, NamedTuple

import msgspec

from sandbox_agent.persist.searching import SNIPPET_WORDS, parse_query
from sandbox_agent.persist.store.rows import SearchRow
from sandbox_agent.persist.store.sqlite.read import session_where
from sandbox_agent.persist.store.sqlite.values import clean, gather
from sandbox_agent.persist.store.sqlite.write import agent_word, first_text_id, session_word

__all__ = ["Filters", "search"]

# A word in fewer items than these is rare.
_RARE: Final = 2_000
_MAX_LIMIT: Final = 1_000
_WORDS: Final = re.compile(r"[^\W_]+")
_FOREVER: Final = 2**62


class Filters(NamedTuple):
    """What the hits are limited to; ``since <= time < until``."""

    agent: str | None = None
    session_id: str | None = None
    since: int | None = None
    until: int | None = None


def search(
    connection: sqlite3.Connection, query: str, limit: int, offset: int, filters: Filters
) -> list[SearchRow]:
    """Return where all parts of the query are found, best first."""
    parts = parse_query(query)
    limit, offset = min(max(limit, 0), _MAX_LIMIT), max(offset, 0)
    if not parts or not limit:
        return []
    match = f"text : ({_all(parts)})"
    if filters.session_id is not None:
        session = session_where(connection, "s.session_id = ?", (clean(filters.session_id),))
        if session is None:
            return []
        match += f" AND scope : {session_word(session.key)}"
    if filters.agent is not None:
        match += f" AND scope : {agent_word(filters.agent)}"
    extent = (
        0 if filters.since is None else first_text_id(filters.since),
        _FOREVER if filters.until is None else first_text_id(filters.until) - 1,
    )
    rare = _rare(connection, parts)
    if rare:
        ids = _ranked(connection, match, rare, extent)[offset : offset + limit]
    else:
        ids = _newest(connection, match, extent, limit, offset)
    return _hits(connection, match, ids)


def _all(parts: list[str]) -> str:
    # In FTS5's quotes nothing has a meaning but the quote itself.
    return " AND ".join('"' + part.replace('"', '""') + '"' for part in parts)


def _rare(connection: sqlite3.Connection, parts: list[str]) -> list[str]:
    """Return the single words that few items have."""
    words = [part for part in parts if _WORDS.fullmatch(part)]
    if not words:
        return []
    count = (
        "(SELECT count(*) FROM (SELECT 1 FROM store_text_index "  # noqa: S608 - constants only
        f"WHERE store_text_index MATCH ? LIMIT {_RARE}))"
    )
    counts = connection.execute(
        "SELECT " + ", ".join([count] * len(words)), [f"text : ({_all([word])})" for word in words]
    ).fetchone()
    return [word for word, found in zip(words, counts, strict=True) if found < _RARE]


def _ranked(
    connection: sqlite3.Connection, match: str, rare: list[str], extent: tuple[int, int]
) -> list[int]:
    found = set(_newest(connection, match, extent, _RARE, 0))
    if not found:
        return []
    # Its length tells nothing of the scope.
    ranks = gather(
        connection,
        ["rowid", "bm25(store_text_index, 1.0, 0.0)"],
        "FROM store_text_index WHERE store_text_index MATCH ? ORDER BY rowid DESC LIMIT -1",
        (f"text : ({_all(rare)})",),
    )
    best = sorted((rank, -text_id) for text_id, rank in ranks if text_id in found)
    return [-negative for _, negative in best]


def _newest(
    connection: sqlite3.Connection, match: str, extent: tuple[int, int], limit: int, offset: int
) -> list[int]:
    tail = (
        "FROM store_text_index WHERE store_text_index MATCH ? AND rowid BETWEEN ? AND ? "
        "ORDER BY rowid DESC LIMIT ? OFFSET ?"
    )
    rows = gather(connection, ["rowid"], tail, (match, *extent, limit, min(offset, 2**31)))
    return [row[0] for row in rows]


def _hits(connection: sqlite3.Connection, match: str, ids: list[int]) -> list[SearchRow]:
    """Return the hits of these ids, in their order; those of a session that is being deleted are left out."""
    columns = [
        "page.value",
        "s.session_id",
        "s.agent",
        "s.title",
        "t.sequence",
        "t.time",
        f"snippet(store_text_index, 0, '[', ']', '…', {SNIPPET_WORDS})",
    ]
    tail = (
        "FROM json_each(?) AS page "
        "CROSS JOIN store_text_index ON store_text_index.rowid = page.value AND store_text_index MATCH ? "
        "CROSS JOIN store_texts AS t ON t.id = page.value "
        "CROSS JOIN store_sessions AS s ON s.key = t.key AND NOT s.deleted LIMIT -1"
    )
    found: dict[int, list[Any]] = {
        row[0]: row[1:]
        for row in gather(connection, columns, tail, (msgspec.json.encode(ids).decode(), match))
    }
    return [SearchRow(*found[text_id]) for text_id in ids if text_id in found]
