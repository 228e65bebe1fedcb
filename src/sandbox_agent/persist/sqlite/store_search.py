"""Full-text search of the server's store in SQLite, in bounded time.

Ranking by bm25 reads every occurrence of each word, which takes long for words that are everywhere. So the
rank comes from the rare words of a query alone (those in fewer than 2,000 items), of which there are few
candidates; a query of nothing but common words finds the newest first, without a rank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from sandbox_agent.persist.searching import SNIPPET_WORDS, parse_query
from sandbox_agent.persist.sql.ledger import Filters, clean
from sandbox_agent.persist.sql.work import Query, Row, Select, Work
from sandbox_agent.persist.sqlite.ledger import TEXT_INDEX, agent_word, first_text_id, session_word
from sandbox_agent.persist.sqlite.texts import match_all
from sandbox_agent.persist.store import SearchRow

# A word in fewer items than these is rare.
_RARE: Final = 2_000
_MAX_LIMIT: Final = 1_000
_WORDS: Final = re.compile(r"[^\W_]+")
_FOREVER: Final = 2**62
_COUNT: Final = f"""
SELECT count(*) FROM (SELECT 1 FROM store_text_index WHERE store_text_index MATCH $1 LIMIT {_RARE})
"""
_NEWEST: Final = """
FROM store_text_index WHERE store_text_index MATCH $1 AND rowid BETWEEN $2 AND $3
ORDER BY rowid DESC LIMIT $4 OFFSET $5
"""
_HIT_COLUMNS: Final = (
    *("page.value", "s.session_id", "s.agent", "s.title", "t.sequence", "t.time"),
    f"snippet(store_text_index, 0, '[', ']', '…', {SNIPPET_WORDS})",
)
_HITS: Final = """
FROM json_each($1) AS page
CROSS JOIN store_text_index ON store_text_index.rowid = page.value AND store_text_index MATCH $2
CROSS JOIN store_texts AS t ON t.id = page.value
CROSS JOIN store_sessions AS s ON s.key = t.key AND NOT s.deleted
"""


def search(query: str, limit: int, offset: int, filters: Filters) -> Work[list[SearchRow] | None]:
    """Return where all parts of the query are found, best first; None where the index is not complete."""
    parts = parse_query(query)
    limit, offset = min(max(limit, 0), _MAX_LIMIT), min(max(offset, 0), 2**31)
    if not parts or not limit:
        return []
    if not (yield from TEXT_INDEX.is_full()):
        return None
    match = f"text : ({match_all(parts)})"
    if filters.session_id is not None:
        named = "SELECT key FROM store_sessions WHERE session_id = $1 AND NOT deleted"
        rows = yield Query(named, (clean(filters.session_id),))
        if not rows:
            return []
        match += f" AND scope : {session_word(rows[0][0])}"
    if filters.agent is not None:
        match += f" AND scope : {agent_word(filters.agent)}"
    extent = (
        0 if filters.since is None else first_text_id(filters.since),
        _FOREVER if filters.until is None else first_text_id(filters.until) - 1,
    )
    rare = yield from _rare(parts)
    if rare:
        newest = yield Select(["rowid"], _NEWEST, (match, *extent, _RARE, 0))
        ranked = yield from _ranked({row[0] for row in newest}, rare)
        return (yield from _hits(match, ranked[offset : offset + limit]))
    rows = yield Select(["rowid"], _NEWEST, (match, *extent, limit, offset))
    return (yield from _hits(match, [row[0] for row in rows]))


def _rare(parts: Sequence[str]) -> Work[list[str]]:
    """Return the single words that few items have."""
    found: list[str] = []
    for word in filter(_WORDS.fullmatch, parts):
        counted = yield Query(_COUNT, (f"text : ({match_all([word])})",))
        if counted[0][0] < _RARE:
            found.append(word)
    return found


def _ranked(found: set[int], rare: Sequence[str]) -> Work[list[int]]:
    if not found:
        return []
    # Its length says nothing about the scope.
    ranks = yield Select(
        ["rowid", "bm25(store_text_index, 1.0, 0.0)"],
        "FROM store_text_index WHERE store_text_index MATCH $1 ORDER BY rowid DESC",
        (f"text : ({match_all(rare)})",),
    )
    best = sorted((rank, -text_id) for text_id, rank in ranks if text_id in found)
    return [-negative for _, negative in best]


def _hits(match: str, ids: Sequence[int]) -> Work[list[SearchRow]]:
    """Return the hits of these ids, in their order; those of a session that is being deleted are left out."""
    rows: Sequence[Row] = yield Select(_HIT_COLUMNS, _HITS, (msgspec.json.encode(ids).decode(), match))
    found = {row[0]: row[1:] for row in rows}
    return [SearchRow(*found[text_id]) for text_id in ids if text_id in found]
