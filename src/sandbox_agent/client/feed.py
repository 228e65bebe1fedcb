"""Reads one connection's event stream; resumes it after a loss and notices when it was restarted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b
from typing import NamedTuple

import httpx2

from sandbox_agent.client.delivery import retry_after
from sandbox_agent.client.http import Http, describe, problem_error
from sandbox_agent.engine.sse import SseDecoder, SseEvent, SseTooLargeError
from sandbox_agent.errors import ConflictError, ConnectionLostError, SandboxAgentError
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads, members

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# The server sends a comment every 15 s: a stream that is silent for longer is dead and is opened again.
READ_TIMEOUT = 60.0
RECONNECT_MIN_DELAY = 0.05
RECONNECT_MAX_DELAY = 1.0
# If the port refuses connections for this long, the server is gone.
REFUSED_FOR = 3.0
# An unusable server (a proxy's 502, a network outage) may come back: the turn continues meanwhile.
UNREACHABLE_FOR = 120.0
EPOCH_HEADER = "Sandbox-Agent-Epoch"
GONE = frozenset({404, 410})
RESTARTED = "the event stream was restarted (the server or the agent restarted)"

_PLACE = re.compile(r"([0-9a-f]{32})-([0-9]+)(?:\.[0-9]+)?")


class Place(NamedTuple):
    """The place of an envelope in a stream: the stream's id, and the envelope's sequence."""

    feed: str
    sequence: int

    @classmethod
    def read(cls, event_id: str) -> Place | None:
        """Return the place of an event that the stream brought; None for another event."""
        found = _PLACE.fullmatch(event_id)
        return None if found is None else cls(found[1], int(found[2]))


class Feed:
    """Reads ``GET /v1/acp/{server_id}`` from its beginning until it is closed or lost.

    Args:
        http: the HTTP client.
        path: the connection's path.
        headers: headers of every request.
        on_events: receives the events of one chunk; the next chunk is read after it has returned.
        on_failed: called when the stream could not be opened again; the next try follows.
        holder: describes this process to others that want to read the stream in its place.

    Attributes:
        live: whether the stream is open now.
        opened: set once the stream was opened.
        last_activity: when the last bytes were received, on the monotonic clock.
    """

    def __init__(
        self,
        http: Http,
        path: str,
        headers: dict[str, str],
        on_events: Callable[[list[SseEvent]], Awaitable[None]],
        on_failed: Callable[[], None],
        holder: str,
    ) -> None:
        self.live: bool = False
        self.opened: asyncio.Event = asyncio.Event()
        self.last_activity: float = time.monotonic()
        self._http = http
        self._path = path
        self._headers = headers
        self._on_events = on_events
        self._on_failed = on_failed
        self._params = {"holder": holder}
        self._last_id = "0"
        self._epoch: str | None = None
        # Names a feed without an epoch: only one agent is ever started under a connection's path.
        self._name = blake2b(path.encode(), digest_size=16).hexdigest()
        self._busy = False
        self._retry_after = 0.0
        # Cleared while the stream is broken and may be opened again.
        self._settled = asyncio.Event()
        self._settled.set()

    def start_after(self, feed_id: str | None, sequence: int, params: Mapping[str, str]) -> None:
        """Read what follows an envelope of the stream with that id; call it before ``run``."""
        self._params.update(params)
        self._last_id = str(sequence)
        self._epoch = feed_id if feed_id != self._name else None

    @property
    def id(self) -> str:
        """Identifies the stream: 32 hexadecimal digits."""
        return self._epoch or self._name

    @property
    def complete(self) -> bool:
        """Whether the stream loses no events: a server that sends an epoch guarantees it."""
        return self._epoch is not None

    def quiet_since(self, start: float) -> float:
        """Return how long nothing was received, counted from ``start``; 0 while events are processed."""
        return 0.0 if self._busy else time.monotonic() - max(self.last_activity, start)

    async def wait_quiet(self, seconds: float) -> None:
        """Wait until the open stream has been silent for so long."""
        began = time.monotonic()
        while (quiet := self.quiet_since(began)) < seconds:  # noqa: ASYNC110 - a time without an event
            await asyncio.sleep(seconds - quiet)

    async def wait_live(self, seconds: float) -> None:
        """Wait until a stream that broke is open again, or is lost; at most so long.

        Its server may have ended, and would not know what was sent to it.
        """
        if not self._settled.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._settled.wait()

    def settle(self) -> None:
        """Do not wait for the stream any more: the connection is lost."""
        self._settled.set()

    async def run(self) -> SandboxAgentError:
        """Read until the stream is lost for good; return the reason."""
        try:
            return await self._run()
        finally:
            self._settled.set()

    async def _run(self) -> SandboxAgentError:
        delay = RECONNECT_MIN_DELAY
        lost_since: float | None = None
        while True:
            began = time.monotonic()
            patience = UNREACHABLE_FOR
            try:
                reason = await self._read_once()
                if isinstance(reason, SandboxAgentError):
                    return reason
                cause = reason
            except httpx2.TransportError as error:
                cause = describe(error)
                if isinstance(error, httpx2.ConnectError):
                    patience = REFUSED_FOR
            finally:
                was_live, self.live = self.live, False
            now = time.monotonic()
            if was_live:
                self._settled.clear()
                lost_since = now
                if now - began > REFUSED_FOR:
                    delay = RECONNECT_MIN_DELAY
                logger.info("the event stream of %s ended (%s): reconnecting", self._path, cause)
            elif now - (lost_since or began) > patience:
                return ConnectionLostError(f"the server at {self._http.base_url} is gone ({cause})")
            else:
                self._on_failed()
            lost_since = lost_since or began
            await asyncio.sleep(max(delay, self._retry_after))
            self._retry_after = 0.0
            delay = min(delay * 2, RECONNECT_MAX_DELAY)

    async def _read_once(self) -> SandboxAgentError | str:
        headers = {**self._headers, "Accept": "text/event-stream", "Last-Event-ID": self._last_id}
        params = self._params | ({"epoch": self._epoch} if self._epoch is not None else {})
        async with self._http.stream(
            self._path, params=params, headers=headers, read_timeout=READ_TIMEOUT
        ) as response:
            if response.status_code >= 400:
                await response.aread()
                problem = problem_error(response)
                if isinstance(problem, ConflictError):
                    return problem
                if response.status_code in GONE and problem is not None:
                    return ConnectionLostError("the server no longer knows this connection (it restarted?)")
                self._retry_after = retry_after(response)
                return f"status {response.status_code}: {response.text[:200]}"
            epoch = response.headers.get(EPOCH_HEADER)
            if self._epoch is not None and epoch != self._epoch:
                return ConnectionLostError(RESTARTED)
            self._epoch = epoch
            return await self._consume(response)

    async def _consume(self, response: httpx2.Response) -> SandboxAgentError | str:
        decoder = SseDecoder()
        self.live = True
        self._settled.set()
        self.opened.set()
        self._busy = False
        self.last_activity = time.monotonic()
        async for chunk in response.aiter_raw():
            self.last_activity = time.monotonic()
            try:
                events = decoder.feed(chunk)
            except SseTooLargeError as error:
                return ConnectionLostError(f"invalid event stream: {error}")
            if not events:
                continue
            if any(event.event == "reset" for event in events):
                return ConnectionLostError(RESTARTED)
            self._busy = True
            await self._on_events(events)
            self._busy = False
            self.last_activity = time.monotonic()
            self._last_id = decoder.last_event_id or self._last_id
        return "end of stream"


def parse_event_data(data: bytes) -> dict[str, object]:
    """Return the JSON object in an event's data; other data is returned as its ``detail``."""
    try:
        value: object = loads(data)
    except InvalidEnvelopeError:
        return {"detail": data.decode("utf-8", "replace")}
    fields = members(value)
    return fields if isinstance(value, dict) else {"detail": value}
