"""A driver of your own: sessions in a folder of JSON lines, which other tools can read.

Five methods are enough: the base class does everything else with them.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sandbox_agent import ListPage, SandboxAgent, SessionEvent, SessionPersistDriver, SessionRecord, local
from sandbox_agent.persist.base import decode_cursor, encode_cursor, normalize_limit


class JsonLinesDriver(SessionPersistDriver):
    """Keeps ``sessions.jsonl`` and ``events.jsonl``; of lines with the same id, the last one counts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._sessions = folder / "sessions.jsonl"
        self._events = folder / "events.jsonl"

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        return next((each for each in self._read_sessions() if each.id == session_id), None)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        rows = [((each.created_at, each.id), each) for each in self._read_sessions()]
        return _page(rows, limit, cursor)

    async def update_session(self, session: SessionRecord, /) -> None:
        _append(self._sessions, session.id, session.to_dict())

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        rows = [
            ((event.event_index, event.id), event)
            for event in map(_to_event, _read(self._events))
            if event.session_id == session_id
        ]
        return _page(rows, limit, cursor)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        fields = [event.event_index, session_id, event.created_at, event.connection_id, event.sender]
        # The envelope is kept as text: it has to come back as the same bytes.
        _append(self._events, event.id, [event.id, *fields, event.payload_json.decode()])

    def _read_sessions(self) -> Iterator[SessionRecord]:
        return (msgspec.convert(row, SessionRecord) for row in _read(self._sessions))


def _append(file: Path, key: str, value: Any) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps([key, value]) + "\n")


def _read(file: Path) -> list[Any]:
    if not file.exists():
        return []
    with file.open() as lines:
        return list(dict(json.loads(line) for line in lines).values())


def _to_event(row: list[Any]) -> SessionEvent:
    event_id, index, session_id, created_at, connection_id, sender, payload = row
    return SessionEvent(event_id, index, session_id, created_at, connection_id, sender, payload.encode())


def _page(rows: list[tuple[tuple[int, str], Any]], limit: int | None, cursor: str | None) -> ListPage[Any]:
    after, size = decode_cursor(cursor), normalize_limit(limit)
    rows = sorted(rows, key=lambda row: row[0])
    if after is not None:
        rows = rows[after.offset :] if after.offset else [row for row in rows if row[0] > after[:2]]
    more = len(rows) > size
    return ListPage([item for _, item in rows[:size]], encode_cursor(*rows[size - 1][0]) if more else None)


async def main(folder: Path) -> None:
    driver = JsonLinesDriver(folder)
    async with SandboxAgent.start(sandbox=local(log="silent"), persist=driver) as sdk:
        session = await sdk.create_session(agent="mock")
        print(await session.ask("hello"))
        page = await sdk.get_events(session_id=session.id)
        await sdk.destroy_sandbox()
    print(f"{len(page.items)} events are in {folder}")


if __name__ == "__main__":
    asyncio.run(main(Path(tempfile.mkdtemp())))
