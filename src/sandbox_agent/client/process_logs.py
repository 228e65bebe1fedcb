"""Follows the output of a process over any number of connections, each entry once and in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TypeVar

import httpx2
import msgspec

from sandbox_agent.client.http import quote_segment
from sandbox_agent.client.server_sessions.calls import (
    SessionCalls,
    UnavailableError,
    decode,
    is_temporary,
    query,
)
from sandbox_agent.engine.sse import SseDecoder, SseEvent, SseTooLargeError
from sandbox_agent.errors import ConnectionLostError, GoneError, SandboxAgentError
from sandbox_agent.wire.processes import (
    ProcessInfo,
    ProcessLogEntry,
    ProcessLogGap,
    ProcessLogsResponse,
    ProcessStream,
)

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

T = TypeVar("T")

# The published server does not say that a process has ended: it is asked after so many silent seconds.
ASK_SECONDS = 1.0


def process_path(process_id: str, *rest: str) -> str:
    """Return the path of a process, or of a part of it.

    Raises:
        ValueError: the id is empty or a dot segment.
    """
    return "/".join(["/v1/processes", quote_segment(process_id), *rest])


class LogFollower:
    """Reads the log of one process until it has ended.

    Args:
        calls: sends the requests.
        process_id: the process.
        stream: whose output to read.
        since: the sequence of the last entry that the caller has; None for none.
        tail: read only so many of the last entries first.
        allow_gaps: whether to skip entries that the server has dropped.
    """

    def __init__(
        self,
        calls: SessionCalls,
        process_id: str,
        *,
        stream: ProcessStream,
        since: int | None,
        tail: int | None,
        allow_gaps: bool,
    ) -> None:
        self._calls = calls
        self._id = process_id
        self._stream: ProcessStream = stream
        self._sequence = since
        self._tail = tail
        self._allow_gaps = allow_gaps
        self._retry = calls.retry_policy(f"log of process '{process_id}'")
        self._created_at_ms: int | None = None
        self._exited = 0
        self._is_new = True
        self._ended = False

    async def entries(self) -> AsyncGenerator[ProcessLogEntry]:
        """Iterate over the entries; raises as Processes.follow_logs."""
        while True:
            loss: Exception | str = "the stream ended"
            await self._ask()
            try:
                async with aclosing(self._read_connection()) as batches:
                    async for events in batches:
                        for event in events:
                            if (entry := self._accept(event)) is not None:
                                yield entry
                        if self._ended:
                            return
            except httpx2.TransportError as error:
                loss = error
            except UnavailableError as error:
                cause = error.__cause__
                loss = cause if isinstance(cause, SandboxAgentError) else error
            await self._retry.wait(loss)

    async def _ask(self) -> None:
        """Count how often in a row the process had ended when it was asked.

        Raises:
            GoneError: it is another one: the server was restarted, and has used its id again.
        """
        path = process_path(self._id)
        answer = await self._calls.send("GET", path, retry=self._retry, repeats=is_temporary)
        info = decode(answer, ProcessInfo, f"GET {path}")
        if self._created_at_ms not in (None, info.created_at_ms):
            raise GoneError(
                f"process '{self._id}' is gone: the server was restarted, and the id is another process's now"
            )
        self._created_at_ms = info.created_at_ms
        self._exited = self._exited + 1 if info.status == "exited" else 0

    async def _read_connection(self) -> AsyncGenerator[Sequence[SseEvent]]:
        """Iterate over the events of one connection, those of one chunk together."""
        params = query(follow=True, stream=self._stream, **self._position())
        decoder = SseDecoder()
        async with self._calls.stream(
            "GET", process_path(self._id, "logs"), params=params, headers={}
        ) as response:
            self._retry.mark_responded()
            chunks = response.aiter_raw()
            is_first = True
            while (data := await self._read_chunk(chunks, decoder)) is not None:
                try:
                    events = decoder.feed(data)
                except SseTooLargeError as error:
                    raise ConnectionLostError(f"invalid event stream: {error}") from error
                if events or not is_first:
                    self._retry.mark_progress()
                is_first = False
                yield events
            if self._ended:
                yield await self._rest()

    async def _read_chunk(self, chunks: AsyncIterator[bytes], decoder: SseDecoder) -> bytes | None:
        """Return the next bytes; None at the end, or if the published server's process has ended."""
        if decoder.retry_ms is not None:
            return await anext(chunks, None)  # our server says so itself; it sends this first
        reading: asyncio.Future[bytes | None] = asyncio.ensure_future(anext(chunks, None))
        try:
            while not (await asyncio.wait({reading}, timeout=ASK_SECONDS))[0]:
                await self._ask()
                self._retry.mark_progress()
                if self._exited > 1:  # its last output may come a moment after it has ended
                    self._ended = True
                    return None
            return await reading
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait({reading})

    async def _rest(self) -> Sequence[SseEvent]:
        """Return the entries that the published server has not sent when the process had ended."""
        path = process_path(self._id, "logs")
        params = query(stream=self._stream, **self._position())
        answer = await self._calls.send("GET", path, params=params, retry=self._retry, repeats=is_temporary)
        found = decode(answer, ProcessLogsResponse, f"GET {path}").entries
        return [SseEvent("log", None, msgspec.json.encode(entry)) for entry in found]

    def _position(self) -> dict[str, int | None]:
        """Return the parameters of what to read next: after the last entry, or the tail before the first."""
        return {"since": self._sequence, "tail": self._tail if self._is_new else None}

    def _accept(self, event: SseEvent) -> ProcessLogEntry | None:
        """Return the entry of an event, if it has a new one."""
        if event.event == "log":
            entry = self._decode(event, ProcessLogEntry)
            if self._sequence is not None and entry.sequence <= self._sequence:
                return None
            # The other streams have the sequences between two entries of one stream.
            if self._stream == "combined" and not (self._is_new and self._tail is not None):
                self._check_gap(entry.sequence - 1)
            self._is_new = False
            self._sequence = entry.sequence
            return entry
        if event.event == "gap":
            self._check_gap(self._decode(event, ProcessLogGap).to)
        elif event.event == "exit":
            self._ended = True
        else:
            logger.info("process %s: unknown stream event %r", self._id, event.event)
        return None

    def _decode(self, event: SseEvent, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(event.data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SandboxAgentError(
                f"the server sent an invalid event ({error}): is that a sandbox-agent server?"
            ) from error

    def _check_gap(self, last: int) -> None:
        """Skip the entries up to a sequence, if there are any before it that were not received."""
        before, self._sequence = self._sequence, max(last, self._sequence or 0)
        if before is None or last <= before:
            return  # the caller has named no entry, and reads from the oldest one that is kept
        if not self._allow_gaps:
            self._sequence = before
            raise GoneError(
                f"process '{self._id}': the log entries {before + 1} to {last} are dropped, because its log "
                f"was full; continue with since={last}, or allow gaps",
                missingFrom=before + 1,
                missingTo=last,
            )
        logger.warning("process %s: the log entries %d to %d are dropped", self._id, before + 1, last)
