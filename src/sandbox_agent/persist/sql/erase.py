"""Erases from the server's store in slices, short transactions between which commits continue."""

from __future__ import annotations

from typing import Final, NamedTuple

from sandbox_agent.persist.sql.ledger import MAX_NUMBER, SAME, LedgerDialect, bounded
from sandbox_agent.persist.sql.work import Query, Select, Work
from sandbox_agent.persist.store import LARGE_BYTES

# A slice has no more rows, nor bytes if it has more than one row: it holds up commits for some 20 ms.
_SLICE_ROWS: Final = 2_000
_SLICE_BYTES: Final = 2 * 1024 * 1024
# Sessions that are listed in one go.
_SESSIONS_PAGE: Final = 250

_HIDE: Final = """
UPDATE {store_sessions} SET deleted = {true}, session_id = NULL, native_session_id = NULL, server_id = NULL,
  directory = NULL, title = NULL, model = NULL, variant = NULL, usage = NULL, settings = NULL{no_digests}
WHERE {mine:} key = $1
"""
_FIRST: Final = """
UPDATE {store_sessions} SET first_sequence = coalesce((
  SELECT {sequence:e} FROM {store_events} AS e WHERE {in_events:e} ORDER BY {sequence_order:e} LIMIT 1
), last_sequence + 1)
WHERE {mine:} key = $3
"""
# The rows of ended turns and answers stay: they number the turns, and identify a repeated message.
_BLANK_TURNS: Final = """
UPDATE {store_turns} SET prompt = $2
WHERE {mine:} key = $1 AND prompt <> $2 AND state NOT IN ('accepted', 'running')
  AND last_sequence < (SELECT first_sequence FROM {store_sessions} WHERE {mine:} key = $1)
"""
_BLANK_PERMISSIONS: Final = """
UPDATE {store_permissions} SET metadata = $2, action = ''
WHERE {mine:} key = $1 AND metadata <> $2 AND answered IS NOT NULL
  AND sequence < (SELECT first_sequence FROM {store_sessions} WHERE {mine:} key = $1)
"""


def _slice_end(table: str, number: str, extent: str, order: str) -> str:
    """Return the statement for a slice's last row: older than the bound, and within the size."""
    return f"""
SELECT max(number) FROM (
  SELECT number, max(time) OVER w AS newest, sum(size) OVER w AS total, row_number() OVER w AS place
  FROM (
    SELECT {number} AS number, l.time, length(l.data) AS size FROM {table} AS l
    WHERE {extent} ORDER BY {order} LIMIT {_SLICE_ROWS}
  ) AS oldest
  WINDOW w AS (ORDER BY number ROWS UNBOUNDED PRECEDING)
) AS page WHERE newest < $3 AND (place = 1 OR total <= $4)
"""


_EVENTS_END: Final = _slice_end("{store_events}", "{sequence:l}", "{in_events:l}", "{sequence_order:l}")
_ENVELOPES_END: Final = _slice_end("{store_envelopes}", "{index:l}", "{in_envelopes:l}", "{index_order:l}")


def _aged(condition: str) -> str:
    return f"""
SELECT s.key,
  (SELECT time FROM {{store_events}} AS e WHERE {{of_events:s}} ORDER BY {{sequence_order:e}} LIMIT 1),
  (SELECT time FROM {{store_envelopes}} AS v WHERE {{of_envelopes:s}} ORDER BY {{index_order:v}} LIMIT 1)
FROM {{store_sessions}} AS s WHERE {{mine:s}} {condition} AND NOT s.deleted AND NOT EXISTS (
  SELECT 1 FROM {{store_turns}} AS t
  WHERE {{mine:t}} t.key = s.key AND t.state IN ('accepted', 'running')
)
ORDER BY s.key LIMIT {_SESSIONS_PAGE}
"""


_AGED_PAGE: Final = _aged("s.key > $1")
_AGED_ONE: Final = _aged("s.key = $1")


_LARGE: Final = f"""
FROM {{store_envelopes}} AS v WHERE {{in_envelopes:v}} AND {{index:v}} <= $3
AND length(v.data) >= {LARGE_BYTES} ORDER BY {{index_order:v}}
"""
# No longer than a reference to other data. One pass over the session, only where large data is erased.
_SHORT: Final = """
FROM {store_envelopes} AS v WHERE {in_envelopes:v} AND length(v.data) <= 20 ORDER BY {index_order:v}
"""
_SET_DATA: Final = """
UPDATE {store_envelopes} AS v SET data = $3 WHERE {in_envelopes:v} AND {index:v} = $4
"""


class Aged(NamedTuple):
    """A session that may lose events, and the time of its oldest event or envelope."""

    oldest: int
    key: int


class Eraser:
    """Erases sessions, at once from sight and slice by slice from the tables.

    Args:
        dialect: the engine's.
    """

    def __init__(self, dialect: LedgerDialect) -> None:
        self._dialect = dialect

    def hide(self, key: int) -> Work[bool]:
        """Hide the session: only what is to be erased remains. False if there is no such session."""
        yield from self._dialect.check_owner()
        key = bounded(key)
        found = yield Query("SELECT 1 FROM {store_sessions} WHERE {mine:} key = $1", (key,))
        yield Query(_HIDE, (key,))
        for table in ("{store_snapshots}", "{store_turns}", "{store_permissions}"):
            yield Query(f"DELETE FROM {table} WHERE {{mine:}} key = $1", (key,))
        return bool(found)

    def hidden(self) -> Work[list[int]]:
        """Return the sessions whose deletion has not ended."""
        rows = yield Query("SELECT key FROM {store_sessions} WHERE {mine:} deleted")
        return [row[0] for row in rows]

    def forget(self, key: int) -> Work[None]:
        """Forget that there was a session, of which nothing is left."""
        yield from self._dialect.check_owner()
        yield Query("DELETE FROM {store_sessions} WHERE {mine:} key = $1 AND deleted", (bounded(key),))

    def erase(
        self, key: int, *, before: int | None = None, max_bytes: int = _SLICE_BYTES, whole: bool = False
    ) -> Work[bool]:
        """Erase some of a session's oldest events, with their texts, or else envelopes.

        Args:
            key: the session's.
            before: erase only rows that are older; the first that is not ends it.
            max_bytes: erase about as much.
            whole: nothing of the session is kept in the end.

        Returns:
            False if there was nothing left.
        """
        yield from self._dialect.check_owner()
        key = bounded(key)
        erased = yield from self._erase_slice(key, before, max_bytes, whole)
        if erased:
            yield from self._dialect.erased()
            yield Query(_FIRST, (*self._dialect.extent(key, 0), key))
            yield Query(_BLANK_TURNS, (key, b"[]"))
            yield Query(_BLANK_PERMISSIONS, (key, b"{}"))
        return erased

    def _erase_slice(self, key: int, before: int | None, max_bytes: int, whole: bool) -> Work[bool]:
        dialect = self._dialect
        bounds = (bounded(MAX_NUMBER if before is None else before), min(max(max_bytes, 0), _SLICE_BYTES))
        for table, end in ((dialect.events, _EVENTS_END), (dialect.envelopes, _ENVELOPES_END)):
            rows = yield Query(end, (*dialect.extent(key, 0), *bounds))
            last: int | None = rows[0][0]
            if last is not None:
                if table is dialect.events:
                    yield from dialect.erase_texts(key, last)
                elif not whole:
                    yield from self._keep_repeated(key, last)
                yield from dialect.erase_rows(table, key, last)
                return True
        return before is None and (yield from dialect.erase_texts(key, MAX_NUMBER))

    def _keep_repeated(self, key: int, last: int) -> Work[None]:
        """Move data that envelopes after ``last`` repeat to the first of these."""
        extent = self._dialect.extent
        large = yield Select(("{index:v}",), _LARGE, (*extent(key, 0), last), "v.data")
        if not large:
            return
        erased = {SAME + str(index).encode(): data for index, data in large}
        moved: dict[bytes, int] = {}
        for index, data in (yield Select(("{index:v}",), _SHORT, extent(key, last), "v.data")):
            if data in erased:
                kept = SAME + str(moved[data]).encode() if data in moved else erased[data]
                moved.setdefault(data, index)
                yield Query(_SET_DATA, (*extent(key, index - 1), kept, index))
                yield from self._dialect.count_bytes(len(kept) - len(data))

    def aged(self, after: int) -> Work[tuple[list[Aged], int | None]]:
        """Return some sessions that may lose events, and the key to continue after; None at the end."""
        rows = yield Query(_AGED_PAGE, (after,))
        return _ages(rows), rows[-1][0] if len(rows) == _SESSIONS_PAGE else None

    def aged_one(self, key: int) -> Work[list[Aged]]:
        """Return one session if it may lose events."""
        return _ages((yield Query(_AGED_ONE, (bounded(key),))))


def _ages(rows: list[tuple[int, int | None, int | None]]) -> list[Aged]:
    found: list[Aged] = []
    for key, *times in rows:
        known = [time for time in times if time is not None]
        if known:
            found.append(Aged(min(known), key))
    return found
