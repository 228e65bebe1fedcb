"""A session's events out of the store, rendered page by page: memory does not grow with the session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal, Protocol

import anyio
import anyio.to_thread
import msgspec

from sandbox_agent.errors import GoneError
from sandbox_agent.persist.store.base import SessionStore
from sandbox_agent.persist.store.rows import EventRow, SessionRow
from sandbox_agent.server.transcripts.entries import Entry, Failure
from sandbox_agent.server.transcripts.html import HtmlRenderer
from sandbox_agent.server.transcripts.markdown import MarkdownRenderer
from sandbox_agent.server.transcripts.transcript_builder import Fold
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import decode_event

__all__ = ["FORMATS", "ExportFormat", "Renderer", "export", "render"]

ExportFormat = Literal["jsonl", "markdown", "html"]
# Media type and file name suffix.
FORMATS: dict[ExportFormat, tuple[str, str]] = {
    "jsonl": ("application/x-ndjson", "jsonl"),
    "markdown": ("text/markdown; charset=utf-8", "md"),
    "html": ("text/html; charset=utf-8", "html"),
}
# One page: small enough not to hold the loop while it is rendered.
PAGE_EVENTS = 200
PAGE_BYTES = 64 * 1024


class Renderer(Protocol):
    """Turns entries into text."""

    def begin(self, info: SessionInfo) -> str:
        """Return the head."""
        ...

    def entry(self, entry: Entry) -> str:
        """Return an entry."""
        ...

    def end(self) -> str:
        """Return what stands at the end."""
        ...


def render(renderer: Renderer, info: SessionInfo, pages: Sequence[Sequence[bytes]]) -> Iterator[str]:
    """Render events that are at hand."""
    fold = Fold()
    yield renderer.begin(info)
    for page in pages:
        yield "".join(_pieces(renderer, fold, page))
    yield "".join(renderer.entry(entry) for entry in fold.end()) + renderer.end()


def _pieces(renderer: Renderer, fold: Fold, events: Sequence[bytes]) -> Iterator[str]:
    for data in events:
        try:
            entries = fold.feed(decode_event(data))
        except (InvalidEnvelopeError, msgspec.ValidationError) as error:
            entries = [Failure("", f"an event can't be read: {error}")]
        for entry in entries:
            yield renderer.entry(entry)


async def export(
    store: SessionStore, row: SessionRow, info: SessionInfo, form: ExportFormat
) -> AsyncIterator[bytes]:
    """Yield a session as a file, with the events that it has now.

    Args:
        store: where the events are.
        row: the session as it is now.
        info: what stands at the head.
        form: jsonl: one event a line, as it is stored; markdown; html: one page that needs no other file.

    Raises:
        GoneError: the session was deleted meanwhile.
    """
    if form == "jsonl":
        async for page in _pages(store, row):
            yield b"\n".join([event.data for event in page]) + b"\n"
        return
    renderer: Renderer = MarkdownRenderer() if form == "markdown" else HtmlRenderer()
    fold = Fold()
    yield _encode(renderer.begin(info))
    async for page in _pages(store, row):
        # a long text takes its time, and viewers of other sessions must not wait for it
        if text := await anyio.to_thread.run_sync(_page_text, renderer, fold, page):
            yield text
    yield await anyio.to_thread.run_sync(_end_text, renderer, fold)


def _page_text(renderer: Renderer, fold: Fold, page: Sequence[EventRow]) -> bytes:
    return _encode("".join(_pieces(renderer, fold, [event.data for event in page])))


def _end_text(renderer: Renderer, fold: Fold) -> bytes:
    return _encode("".join(renderer.entry(entry) for entry in fold.end()) + renderer.end())


async def _pages(store: SessionStore, row: SessionRow) -> AsyncIterator[list[EventRow]]:
    after = row.first_sequence - 1
    while after < row.last_sequence:
        page = await store.events(row.key, after=after, limit=PAGE_EVENTS, max_bytes=PAGE_BYTES)
        page = [event for event in page if event.sequence <= row.last_sequence]
        if not page:
            found = await store.session(row.session_id)
            if found is None or found.key != row.key:
                raise GoneError(f"gone: session '{row.session_id}' was deleted while it was exported")
            return  # the rest was beyond retention by now
        yield page
        after = page[-1].sequence


def _encode(text: str) -> bytes:
    # a lone surrogate can be in a JSON string and in no file
    return text.encode("utf-8", "replace")
