"""How the server's store is kept in an SQLite file: its rows, its texts, and which server owns it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.searching import SNIPPET_WORDS, parse_query
from sandbox_agent.persist.sql.ledger import Filters, LedgerDialect
from sandbox_agent.persist.sql.tables import STORE_ENVELOPE_COLUMNS, STORE_EVENT_COLUMNS, without_form
from sandbox_agent.persist.sql.work import Column, Insert, Query, Row, Select, Table, Work, columns
from sandbox_agent.persist.sqlite.dialect import MAX_SEQUENCE, row_id
from sandbox_agent.persist.sqlite.texts import FullTextIndex, match_all
from sandbox_agent.persist.store import SearchRow, TextRow
from sandbox_agent.persist.store.values import clean, searchable

# Below the time in a text's id: items of one millisecond. More of them run on into the next.
_TEXT_BITS: Final = 12
_LATEST: Final = 2**50  # an absurd clock's texts are all here

TEXT_INDEX: Final = FullTextIndex(
    "store_text_index",
    "text, scope",
    "store_texts",
    "SELECT value FROM store_meta WHERE name = 'indexed_from'",
    "INSERT INTO store_meta (name, value) VALUES ('indexed_from', $1) "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
)
_TEXTS: Final = Table(
    "store_texts",
    columns("id integer, key integer, sequence integer, time integer, scope text, text text"),
    ("key", "sequence"),
)
_ID: Final = columns("id integer")
_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "blob": str.encode,
    "bytes": bytes.fromhex,
    "boolean": bool,
}


_NEWEST_GENERATION: Final = "SELECT value FROM store_meta WHERE name = 'generation'"
_SET_META: Final = """
INSERT INTO store_meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
_RAISE_META: Final = """
INSERT INTO store_meta (name, value) VALUES ($1, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1
"""
_NEXT_KEY: Final = """
UPDATE store_meta SET value = 1 + max(value, (SELECT coalesce(max(key), 0) FROM store_sessions))
WHERE name = 'last_key'
"""
_JOIN_RAW: Final = "LEFT JOIN store_envelopes AS v ON v.id = (e.id >> 32 << 32 | e.envelope)"
_EVENTS_TAIL: Final = "FROM store_events AS e {join} WHERE {{in_events:e}} ORDER BY e.id LIMIT $3"
_PLAIN_TAIL: Final = _EVENTS_TAIL.format(join="")
_RAW_TAIL: Final = _EVENTS_TAIL.format(join=_JOIN_RAW)
_EVENT_COLUMNS: Final = ("{sequence:e}", "e.time", "e.type", "e.envelope")
# About what a row of the index's segments takes.
_INDEX_PAGE: Final = 4_096
# Ranking by bm25 reads every occurrence of each word, which takes long for words that are everywhere. So the
# rank comes from the rare words of a query alone, of which there are few candidates; a query of nothing but
# common words finds the newest first, without a rank.
# A word in fewer items than these is rare.
_RARE: Final = 2_000
_MAX_LIMIT: Final = 1_000
_WORD: Final = re.compile(r"[^\W_]+")
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


class SQLiteLedger(LedgerDialect):
    """Implements ``sql.ledger.LedgerDialect``.

    Args:
        path: the file, for errors.

    Attributes:
        replaced: why this store may not write any more; None while it may.
    """

    largest_key: int = MAX_SEQUENCE
    events: Table = Table("{store_events}", _ID + without_form(STORE_EVENT_COLUMNS), ("id",))
    envelopes: Table = Table("{store_envelopes}", _ID + without_form(STORE_ENVELOPE_COLUMNS), ("id",))

    def __init__(self, path: str) -> None:
        # A lone surrogate becomes a question mark.
        self.text: Callable[[str], str] = clean
        self.name: Callable[[str], str] = clean
        self.original: Callable[[str], str] = str
        self.replaced: str | None = None
        self._path = path
        # 0: this store has not claimed the file.
        self._generation = 0

    # Values.

    def place(self, key: int, number: int) -> tuple[int]:
        return (row_id(key, number),)

    def extent(self, key: int, after: int) -> tuple[int, int]:
        """Return between which ids a session's rows are, after that number."""
        return row_id(key, after), row_id(key, MAX_SEQUENCE)

    def selected(self, alias: str, table_columns: Sequence[Column]) -> list[str]:
        """Return columns as values of JSON."""
        return [
            f"CAST({alias}.{name} AS TEXT)"
            if kind == "blob"
            else f"hex({alias}.{name})"
            if kind == "bytes"
            else f"{alias}.{name}"
            for name, kind, _ in table_columns
        ]

    def converter(self, column: Column) -> Callable[[Any], Any] | None:
        return _CONVERTERS.get(column.kind)

    # The owner.

    def claim(self) -> Work[int]:
        """Become the file's only writer: the stores that claimed it before are refused from now on."""
        yield Query(_RAISE_META, ("generation",))
        yield Query(_SET_META, ("owner", f"process {os.getpid()} on {clean(socket.gethostname())}"))
        rows = yield Query(_NEWEST_GENERATION)
        return int(rows[0][0])

    def claimed(self, generation: int) -> None:
        """Write with that generation from now on."""
        self._generation = generation

    def check_owner(self) -> Work[None]:
        if not self._generation:
            return
        rows = yield Query(_NEWEST_GENERATION)
        if rows[0][0] != self._generation:
            owner = yield Query("SELECT value FROM store_meta WHERE name = 'owner'")
            self.replaced = (
                f"the store '{self._path}' was opened by another server ({owner[0][0]}) while this one was "
                "running, nothing was stored: stop one of the two, or give it another --store"
            )
            raise PersistError(self.replaced)

    def next_key(self) -> Work[int]:
        yield Query(_NEXT_KEY)
        rows = yield Query("SELECT value FROM store_meta WHERE name = 'last_key'")
        return int(rows[0][0])

    # Events.

    def read_events(
        self, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
    ) -> Work[Sequence[Row]]:
        """Return a page of events; how many fit is found out first, from their sizes."""
        extent = self.extent(key, after)
        size, tail = ("length(e.data)", _PLAIN_TAIL)
        if include_raw:
            size, tail = f"{size} + coalesce(length(v.data), 0)", _RAW_TAIL
        yield Query("SAVEPOINT page")  # the statements see one state of the file
        try:
            sizes = yield Select([size], tail, (*extent, limit))
            fitting = sum(total <= max_bytes for total in accumulate(row[0] for row in sizes))
            count = max(fitting, min(len(sizes), 1))
            if not count:
                return ()
            events: list[list[Any]] = yield Select(
                _EVENT_COLUMNS, _PLAIN_TAIL, (*extent, count), data="e.data"
            )
            if include_raw:
                raws = yield Select((), _RAW_TAIL, (*extent, count), data="v.data")
                return [[*event, *raw] for event, raw in zip(events, raws, strict=True)]
            return events
        finally:
            yield Query("RELEASE page")

    # Texts.

    def index_texts(self, texts: Sequence[TextRow]) -> Work[None]:
        """Store texts after the sessions, whose agents they name, and index them."""
        if not texts:
            return
        scopes: dict[int, str] = {}
        for key in {row.key for row in texts}:
            rows = yield Query("SELECT agent FROM store_sessions WHERE key = $1", (key,))
            scopes[key] = f"{_session_word(key)} {_agent_word(rows[0][0] if rows else '')}"
        ordered = sorted(texts, key=lambda row: row.time)
        ids = yield from _free_text_ids([row.time for row in ordered])
        yield Insert(
            _TEXTS,
            [
                (text_id, row.key, row.sequence, row.time, scopes[row.key], searchable(row.text))
                for text_id, row in zip(ids, ordered, strict=True)
            ],
        )
        # Those that were there already have other ids, so they aren't indexed twice.
        yield from TEXT_INDEX.add(ids)

    def missing_bytes(self) -> Work[int]:
        """Return about how much the index will grow when it is completed."""
        if (yield from TEXT_INDEX.is_full()):
            return 0
        rows = yield Query("SELECT value FROM store_meta WHERE name = 'index_bytes'")
        return max(int(rows[0][0]), 0) if rows else 0

    # Erasing.

    def erase_rows(self, table: Table, key: int, last: int) -> Work[None]:
        values = (row_id(key, 0), row_id(key, last))
        yield Query(f"DELETE FROM {table.name} WHERE id > $1 AND id <= $2", values)

    def erase_texts(self, key: int, last: int) -> Work[bool]:
        """Erase texts, and all words of the index, as FTS5 keeps erased ones; searching fills it again."""
        values = (key, min(last, MAX_SEQUENCE))
        rows = yield Query(
            "SELECT count(*), sum(length(text)) FROM store_texts WHERE key = $1 AND sequence <= $2", values
        )
        count, size = rows[0]
        if not count:
            return False
        if (yield from TEXT_INDEX.is_full()):
            pages = yield Query("SELECT count(*) FROM store_text_index_data")
            yield Query(_SET_META, ("index_bytes", pages[0][0] * _INDEX_PAGE))
        yield Query("UPDATE store_meta SET value = value - $1 WHERE name = 'index_bytes'", (size,))
        yield Query("DELETE FROM store_texts WHERE key = $1 AND sequence <= $2", values)
        yield from TEXT_INDEX.empty()
        return True

    def erased(self) -> Work[None]:
        """Note that the log holds traces of what was erased."""
        yield Query(_RAISE_META, ("traces",))

    def traces(self) -> Work[int]:
        """Return another number each time that something was erased, 0 while there are no traces."""
        rows = yield Query("SELECT value FROM store_meta WHERE name = 'traces'")
        return int(rows[0][0]) if rows else 0

    def forget_traces(self, traces: int) -> Work[None]:
        """Note that what was erased up to that number has left no traces."""
        yield Query("UPDATE store_meta SET value = 0 WHERE name = 'traces' AND value = $1", (traces,))


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
        match += f" AND scope : {_session_word(rows[0][0])}"
    if filters.agent is not None:
        match += f" AND scope : {_agent_word(filters.agent)}"
    extent = (
        0 if filters.since is None else _first_text_id(filters.since),
        _FOREVER if filters.until is None else _first_text_id(filters.until) - 1,
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
    for word in filter(_WORD.fullmatch, parts):
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


def used_bytes() -> Work[int]:
    """Return the size of the file without its free pages."""
    pages = yield Query("PRAGMA page_count")
    free = yield Query("PRAGMA freelist_count")
    size = yield Query("PRAGMA page_size")
    return (pages[0][0] - free[0][0]) * size[0][0]


def _first_text_id(time: int) -> int:
    """Return the lowest id of the texts of that time."""
    return min(max(time, 0), _LATEST) << _TEXT_BITS


def _session_word(key: int) -> str:
    """Return the word that finds a session's texts."""
    return f"s{key}"


def _agent_word(agent: str) -> str:
    """Return the word that finds an agent's texts."""
    return "a" + clean(agent).encode().hex()


def _free_text_ids(times: Sequence[int]) -> Work[list[int]]:
    """Return a free id for each of the times, which are in order."""
    rows = yield Query("SELECT coalesce(max(id), -1) FROM store_texts")
    newest = int(rows[0][0])
    ids: list[int] = []
    last = -1
    for time in times:
        text_id = max(_first_text_id(time), last + 1)
        if text_id <= newest:
            # The clock went back, or the millisecond has texts.
            end = (text_id >> _TEXT_BITS) + 1 << _TEXT_BITS
            rows = yield Query("SELECT max(id) FROM store_texts WHERE id >= $1 AND id < $2", (text_id, end))
            free = text_id if rows[0][0] is None else int(rows[0][0]) + 1
            text_id = free if free < end else newest + 1
        ids.append(text_id)
        last = text_id
    return ids
