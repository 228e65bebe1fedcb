"""How the server's store is kept in PostgreSQL: its rows, its texts, and what its data is counted as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from sandbox_agent.persist.postgres.dialect import digest, original, storable
from sandbox_agent.persist.postgres.owner import Owner
from sandbox_agent.persist.searching import words_of
from sandbox_agent.persist.sql.ledger import MAX_NUMBER, LedgerDialect, bounded
from sandbox_agent.persist.sql.tables import (
    STORE_ENVELOPE_COLUMNS,
    STORE_EVENT_COLUMNS,
    without_form,
)
from sandbox_agent.persist.sql.work import Column, Insert, Query, Row, Table, Work, columns
from sandbox_agent.persist.store import TextRow
from sandbox_agent.persist.store.values import searchable

# What is counted for a row beside its data, and how often a text is for its place in the index.
_ROW_BYTES: Final = 100
_TEXT_FACTOR: Final = 3
_DATA_SIZE: Final = f"octet_length(data) + {_ROW_BYTES}"
_TEXT_SIZE: Final = f"{_TEXT_FACTOR} * octet_length(text) + {_ROW_BYTES}"
# What a tsvector holds: a word of 2 kB, 255 places of it, places up to this; and 1 MB of all.
MAX_WORD: Final = 500
_MAX_PLACES: Final = 255
_LAST_PLACE: Final = 16_383
# With many different words in the text, this is below 1 MB.
_MAX_WORDS: Final = 60_000

_TEXTS: Final = Table(
    "{store_texts}",
    columns("key integer, sequence integer, time integer, text text, folded text?, words tsvector"),
    ("key", "sequence"),
    scoped=True,
    size=_TEXT_SIZE,
)
_OWN: Final = "SELECT 1 FROM {store_namespaces} WHERE {owned} FOR UPDATE"
_NEXT_KEY: Final = """
UPDATE {store_namespaces} SET last_key = 1 + greatest(last_key, (
  SELECT max(key) FROM {store_sessions} WHERE namespace = {namespace}
))
WHERE {owned} RETURNING last_key
"""
_EVENTS: Final = """
SELECT sequence, time, type, envelope, data{raw} FROM (
  SELECT e.sequence, e.time, e.type, e.envelope, e.data{raw_column},
    row_number() OVER w AS place, sum(octet_length(e.data){raw_size}) OVER w AS total
  FROM {{store_events}} AS e {join} WHERE {{in_events:e}}
  WINDOW w AS (ORDER BY e.sequence ROWS UNBOUNDED PRECEDING)
  ORDER BY e.sequence LIMIT $3
) AS page WHERE total <= $4 OR place = 1 ORDER BY sequence
"""
_PLAIN_EVENTS: Final = _EVENTS.format(raw="", raw_column="", raw_size="", join="")
_EVENTS_WITH_RAW: Final = _EVENTS.format(
    raw=", raw",
    raw_column=", v.data AS raw",
    raw_size=" + coalesce(octet_length(v.data), 0)",
    join="LEFT JOIN {store_envelopes} AS v "
    "ON v.namespace = e.namespace AND v.key = e.key AND v.index = e.envelope",
)


def _erase(table: Table, key: int, last: int) -> Work[int]:
    """Erase rows up to that number, and return how many there were."""
    _, number = table.identity
    deletion = f"""
WITH gone AS (
  DELETE FROM {table.name} WHERE {{mine:}} key = $1 AND {number} <= $2 RETURNING {table.size} AS size
), freed AS (
  UPDATE {{store_namespaces}} SET bytes = bytes - (SELECT coalesce(sum(size), 0) FROM gone)
  WHERE number = {{namespace}}
)
SELECT count(*) FROM gone
"""
    return (yield Query(deletion, (key, last)))[0][0]


class IndexedText(NamedTuple):
    """An item's text, its words as a tsvector, and, where that can't hold their places, as text."""

    text: str
    words: str
    folded: str | None


class PostgresLedger(LedgerDialect):
    """Implements ``sql.ledger.LedgerDialect``.

    Args:
        owner: which server has the namespace.
    """

    largest_key: int = MAX_NUMBER
    events: Table = Table(
        "{store_events}",
        columns("key integer, sequence integer") + without_form(STORE_EVENT_COLUMNS),
        ("key", "sequence"),
        scoped=True,
        size=_DATA_SIZE,
    )
    envelopes: Table = Table(
        "{store_envelopes}",
        columns("key integer, index integer") + without_form(STORE_ENVELOPE_COLUMNS),
        ("key", "index"),
        scoped=True,
        size=_DATA_SIZE,
    )

    def __init__(self, owner: Owner) -> None:
        self.text: Callable[[str], str] = storable
        self.name: Callable[[str], bytes] = digest
        self.original: Callable[[str], str] = original
        self._owner = owner

    def place(self, key: int, number: int) -> tuple[int, int]:
        return key, number

    def extent(self, key: int, after: int) -> tuple[int, int]:
        return key, after

    def selected(self, alias: str, table_columns: Sequence[Column]) -> list[str]:
        """Return columns as they are."""
        return [f"{alias}.{column.name}" for column in table_columns]

    def converter(self, column: Column) -> Callable[[Any], Any] | None:
        """Return what restores a text."""
        return original if column.kind == "text" else None

    def check_owner(self) -> Work[None]:
        """Lock the namespace for the length of the transaction.

        Raises:
            PersistError: another server has it.
        """
        self._owner.refuse_replaced()
        if not (yield Query(_OWN)):
            raise (yield from self._owner.explain_loss())

    def check_bundle(self) -> Work[None]:
        """Do what is left of it: a bundle's statement checks the rest."""
        self._owner.refuse_replaced()
        yield from ()

    def next_key(self) -> Work[int]:
        rows = yield Query(_NEXT_KEY)
        return int(rows[0][0])

    def read_events(
        self, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
    ) -> Work[Sequence[Row]]:
        """Return a page of events, in one statement."""
        statement = _EVENTS_WITH_RAW if include_raw else _PLAIN_EVENTS
        return (yield Query(statement, (key, after, limit, max_bytes)))

    def insert_texts(self, texts: Sequence[tuple[TextRow, IndexedText]]) -> list[Insert]:
        rows = [
            (row.key, row.sequence, bounded(row.time), indexed.text, indexed.folded, indexed.words)
            for row, indexed in texts
        ]
        return [Insert(_TEXTS, rows)]

    def erase_rows(self, table: Table, key: int, last: int) -> Work[None]:
        yield from _erase(table, key, last)

    def count_bytes(self, size: int) -> Work[None]:
        statement = "UPDATE {store_namespaces} SET bytes = bytes + $1 WHERE number = {namespace}"
        yield Query(statement, (size,))

    def erase_texts(self, key: int, last: int) -> Work[bool]:
        return (yield from _erase(_TEXTS, key, last)) > 0

    def used_bytes(self) -> Work[int]:
        """Return what is counted of the namespace: data, and an allowance for rows and indexes."""
        rows = yield Query("SELECT bytes FROM {store_namespaces} WHERE number = {namespace}")
        return int(rows[0][0]) if rows else 0


def namespace_word(number: int) -> str:
    """Return the word that all items of a namespace have; no text has it."""
    return f"':{number}'"


def index_text(text: str, namespace: int) -> IndexedText:
    """Return how an item is stored."""
    text = searchable(text)
    words = [word[:MAX_WORD] for word in words_of(text)]
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words, 1):
        places.setdefault(word, []).append(place)
    long = len(words) > _LAST_PLACE or any(len(found) > _MAX_PLACES for found in places.values())
    pieces = [namespace_word(namespace)]
    for word, found in list(places.items())[:_MAX_WORDS]:
        kept = [place for place in found[:_MAX_PLACES] if place <= _LAST_PLACE]
        pieces.append(f"'{word}':{','.join(map(str, kept))}" if kept else f"'{word}'")
    return IndexedText(text, " ".join(pieces), f" {' '.join(words)} " if long else None)
