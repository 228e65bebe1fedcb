"""Exports a session's events page by page, so that memory does not grow with the session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import anyio.to_thread
import msgspec

from sandbox_agent.errors import GoneError
from sandbox_agent.persist.store import EventRow, SessionRow, SessionStore
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import decode_event

if TYPE_CHECKING:
    from sandbox_agent.server.transcripts.templating import TemplateRenderer
    from sandbox_agent.server.transcripts.transcript_builder import TranscriptBuilder

ExportFormat = Literal["jsonl", "markdown", "html"]
# Media type and file name suffix.
FORMATS: dict[ExportFormat, tuple[str, str]] = {
    "jsonl": ("application/x-ndjson", "jsonl"),
    "markdown": ("text/markdown; charset=utf-8", "md"),
    "html": ("text/html; charset=utf-8", "html"),
}
PAGE_EVENTS = 200
PAGE_BYTES = 64 * 1024
CHUNK_CHARACTERS = 128 * 1024


def render_events(
    renderer: TemplateRenderer, builder: TranscriptBuilder, events: Iterable[bytes]
) -> Iterator[str]:
    """Render the entries that encoded events complete."""
    from sandbox_agent.server.transcripts.transcript_builder import Failure

    for data in events:
        try:
            entries = builder.add(decode_event(data))
        except (InvalidEnvelopeError, msgspec.ValidationError) as error:
            entries = [Failure("", f"an event can't be read: {error}")]
        for entry in entries:
            yield from renderer.entry(entry)


def render_end(renderer: TemplateRenderer, builder: TranscriptBuilder) -> Iterator[str]:
    """Render the entries that are still open, and the end of the transcript."""
    for entry in builder.finish():
        yield from renderer.entry(entry)
    yield from renderer.end()


async def export(
    store: SessionStore, row: SessionRow, info: SessionInfo, form: ExportFormat
) -> AsyncIterator[bytes]:
    """Yield the file of a session with its present events.

    "jsonl" has one stored event per line; the others are transcripts, with ``info`` as their head.

    Raises:
        GoneError: the session was deleted during the export.
    """
    if form == "jsonl":
        async for page in _read_pages(store, row):
            yield b"\n".join([event.data for event in page]) + b"\n"
        return
    renderer, builder = await anyio.to_thread.run_sync(_begin, form)
    async for chunk in _encode_in_thread(renderer.begin(info)):
        yield chunk
    async for page in _read_pages(store, row):
        async for chunk in _encode_in_thread(
            render_events(renderer, builder, [event.data for event in page])
        ):
            yield chunk
    async for chunk in _encode_in_thread(render_end(renderer, builder)):
        yield chunk


def _begin(form: ExportFormat) -> tuple[TemplateRenderer, TranscriptBuilder]:
    # These and their libraries are a sixth of the server's time to start, and few servers export anything.
    from sandbox_agent.server.transcripts.html import HtmlRenderer
    from sandbox_agent.server.transcripts.markdown import MarkdownRenderer
    from sandbox_agent.server.transcripts.transcript_builder import TranscriptBuilder

    return MarkdownRenderer() if form == "markdown" else HtmlRenderer(), TranscriptBuilder()


async def _read_pages(store: SessionStore, row: SessionRow) -> AsyncIterator[list[EventRow]]:
    after = row.first_sequence - 1
    while after < row.last_sequence:
        page = await store.events(row.key, after=after, limit=PAGE_EVENTS, max_bytes=PAGE_BYTES)
        page = [event for event in page if event.sequence <= row.last_sequence]
        if not page:
            found = await store.session(row.session_id)
            if found is None or found.key != row.key:
                raise GoneError(f"gone: session '{row.session_id}' was deleted during its export")
            return  # the remaining events have expired
        yield page
        after = page[-1].sequence


async def _encode_in_thread(texts: Iterator[str]) -> AsyncIterator[bytes]:
    """Yield chunks of rendered text; rendering runs in a thread, because a long text takes seconds."""
    chunks = _encode(texts)
    while chunk := await anyio.to_thread.run_sync(next, chunks, b""):
        yield chunk


def _encode(texts: Iterator[str]) -> Iterator[bytes]:
    pending: list[str] = []
    size = 0
    for text in texts:
        pending.append(text)
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield from _encode_chunks("".join(pending))
            pending, size = [], 0
    yield from _encode_chunks("".join(pending))


def _encode_chunks(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), CHUNK_CHARACTERS):
        # A lone surrogate is valid in a JSON string and cannot be encoded.
        yield text[start : start + CHUNK_CHARACTERS].encode("utf-8", "replace")
