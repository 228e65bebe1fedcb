"""The named clients of a connection: who reads its stream, since when one has gone, what they sent."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import ConflictError
from sandbox_agent.wire.jsonrpc import dumps

# A client whose stream has ended may only have lost its network: its place is kept for this long.
GONE_SECONDS: Final = 10.0
MAX_KEYS: Final = 1_024


class Leaving(Protocol):
    """What reads the stream."""

    def leave(self) -> None:
        """Stop reading."""
        ...


@dataclass(slots=True)
class _Client:
    """A client: its process, its open streams, and when the last one of them ended."""

    holder: str | None = None
    streams: list[Leaving] = field(default_factory=list[Leaving])
    left_at: float = 0.0


class Clients:
    """The clients of one connection.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: dict[str, _Client] = {}
        self._sent: OrderedDict[str, None] = OrderedDict()

    def sent(self, key: str) -> None:
        """Note that the agent has received the envelope with that Idempotency-Key."""
        self._sent[key] = None
        if len(self._sent) > MAX_KEYS:
            self._sent.popitem(last=False)

    def unsent(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not among the newest MAX_KEYS that were received."""
        return [key for key in keys if key not in self._sent]

    @contextmanager
    def reading(self, name: str, holder: str | None, stream: Leaving) -> Generator[None]:
        """Count a stream while it is open. A named client has one: an older one is closed.

        Args:
            name: the client's name, or UNNAMED.
            holder: the process that the client belongs to, as it describes itself.
            stream: what reads.
        """
        self._forget_gone()
        client = self._clients.setdefault(name, _Client())
        client.holder = holder or client.holder
        if name != UNNAMED:
            for older in client.streams:
                older.leave()
        client.streams.append(stream)
        try:
            yield
        finally:
            client.streams.remove(stream)
            client.left_at = self._clock()

    def leave(self, name: str) -> None:
        """End the streams of a named client that has ended or is replaced; a proxy may hold them open."""
        if name != UNNAMED and name in self._clients:
            for stream in self._clients[name].streams:
                stream.leave()

    def require_gone(self, name: str, holder: str | None) -> None:
        """Check that a client reads no stream, and has not done so for GONE_SECONDS.

        Args:
            name: the client.
            holder: the caller's own process, which may replace its own client at any time.

        Raises:
            ConflictError: it does, or did. ``connected``, ``goneForMs`` and ``holder`` say more.
        """
        client = self._clients.get(name)
        if client is None or (holder is not None and client.holder == holder):
            return
        gone_for = 0.0 if client.streams else self._clock() - client.left_at
        if gone_for >= GONE_SECONDS:
            return
        state = "is connected" if client.streams else f"was connected {gone_for:.1f} s ago"
        raise ConflictError(
            f"conflict: client '{name}' ({client.holder or 'unknown process'}) {state}; take its place "
            f"when it has been gone for {GONE_SECONDS:g} s, or with take_over=true",
            holder=client.holder,
            connected=bool(client.streams),
            goneForMs=round(gone_for * 1000),
        )

    def _forget_gone(self) -> None:
        now = self._clock()
        self._clients = {
            name: client
            for name, client in self._clients.items()
            if client.streams or now - client.left_at < GONE_SECONDS
        }


def sent_event(client: str, key: str, envelope: bytes) -> bytes:
    """Return the data of a ``sent`` event: one line, without changes to the envelope's tokens."""
    data = dumps({"client": client, "idempotencyKey": key, "envelope": msgspec.Raw(envelope)})
    return data.replace(b"\r", b" ").replace(b"\n", b" ")
