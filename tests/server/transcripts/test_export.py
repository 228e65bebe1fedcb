"""Exports of very long texts: complete, in small chunks, and without blocking the event loop."""

from __future__ import annotations

import html
import time
from typing import Any, cast

import anyio
import pytest

from sandbox_agent.persist.store import EventRow, SessionRow, SessionStore
from sandbox_agent.server.transcripts.export import ExportFormat, export

from .test_renderers import Script, info

pytestmark = pytest.mark.anyio

SIZE = 60 * 1024 * 1024
# The processor time of this process between two turns of the loop; rendering the text takes more of it.
# Decoding the event's JSON, in one call, takes a fifth of this.
BLOCKED_SECONDS = 0.7
LINES = "**a** <b>`c`</b> & ``` d\n"
TEXT = LINES * (SIZE // len(LINES))


class _Store:
    """The events of one session, page by page."""

    def __init__(self, events: list[bytes]) -> None:
        self._rows = [EventRow(1, number, 0, "", 0, data) for number, data in enumerate(events, 1)]

    async def events(self, key: int, *, after: int, limit: int, max_bytes: int) -> list[EventRow]:
        return self._rows[after : after + 1]


def _event(part: dict[str, Any]) -> bytes:
    return Script().item("message", [part]).events[0]


@pytest.fixture(scope="module")
def events() -> list[bytes]:
    return [
        _event({"type": "text", "text": TEXT}),
        _event({"type": "file_ref", "path": "/a", "action": "patch", "diff": TEXT}),
    ]


@pytest.mark.parametrize("form", ["markdown", "html"])
@pytest.mark.parametrize("number", range(2), ids=["text", "diff"])
async def test_a_text_of_60_mb_does_not_block_the_loop(events: list[bytes], number: int, form: ExportFormat):
    store = cast("SessionStore", _Store([events[number]]))
    row = SessionRow(key=1, session_id="s", agent="mock", created_at=0, updated_at=0, last_sequence=1)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begun = time.process_time()
            await anyio.sleep(0.005)
            longest = max(longest, time.process_time() - begun)

    chunks: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        async for chunk in export(store, row, info(), form):
            chunks.append(chunk)
        tasks.cancel_scope.cancel()
    assert longest < BLOCKED_SECONDS
    assert max(map(len, chunks)) <= 512 * 1024
    line = html.escape(LINES) if form == "html" else LINES
    shown = b"".join(chunks).count(line.encode())  # a failed comparison of such texts would take hours
    assert shown == SIZE // len(LINES)
