"""What ``mirror`` does."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Final, Protocol

import click

from sandbox_agent.cli.terminal import printable
from sandbox_agent.client.server_sessions.api import ServerSessions
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.open import parse_store_url
from sandbox_agent.wire.universal import UniversalEvent

__all__ = ["Sink", "mirror_session", "open_sink"]

# Events that are asked for at once, where no stream is followed.
_PAGE: Final = 1_000
# Between two lines of progress, in seconds: on a terminal one line is written over, elsewhere each stays.
_DRAWN_EVERY: Final = 0.2
_LINES_EVERY: Final = 10.0


class Sink(Protocol):
    """A sink of the package's."""

    async def last_sequence(self, session_id: str, /) -> int: ...
    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None: ...
    async def close(self) -> None: ...


def open_sink(url: str) -> Sink:
    """Return the sink that a URL names; nothing is connected to yet.

    Raises:
        InvalidRequestError: it names none, or what it needs is not installed.
    """
    place = parse_store_url(url)
    if place.encrypted or place.kind == "memory":
        raise InvalidRequestError(f"a mirror can't be made into '{place.shown}': give a database")
    try:
        match place.kind:
            case "sqlite":
                from sandbox_agent.client.sinks.sqlite import SQLiteSink

                return SQLiteSink(place.where)
            case "postgres":
                from sandbox_agent.client.sinks.postgres import PostgresSink

                return PostgresSink(place.where)
            case "redis":
                from sandbox_agent.client.sinks.redis import RedisSink

                return RedisSink(place.where)
    except (ImportError, ValueError) as error:
        raise InvalidRequestError(str(error)) from error


async def mirror_session(api: ServerSessions, session_id: str, sink: Sink, *, once: bool) -> None:
    """Copy a session's events: all that come until it has ended, or all that there are now."""
    shown = _Shown(sink, session_id)
    try:
        begun = await sink.last_sequence(session_id)
        shown.begin(begun)
        if once:
            last = await _copy(api, session_id, shown, begun)
        else:
            last = await api.mirror(session_id, into=shown)
        shown.end(last)
    finally:
        shown.leave()
        await sink.close()


async def _copy(api: ServerSessions, session_id: str, sink: _Shown, last: int) -> int:
    while True:
        page = await api.get_events(session_id, offset=last, limit=_PAGE)
        if page.events:
            await sink.insert_events(session_id, page.events)
            last = page.events[-1].sequence
        if not page.has_more or not page.events:
            return last


class _Shown:
    """A sink that says how far it is."""

    def __init__(self, sink: Sink, session_id: str) -> None:
        self._sink = sink
        self._name = printable(session_id)
        self._terminal = sys.stderr.isatty()
        self._told = 0.0
        self._open = False
        self._begun = 0

    async def last_sequence(self, session_id: str, /) -> int:
        return await self._sink.last_sequence(session_id)

    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        await self._sink.insert_events(session_id, events)
        now = time.monotonic()
        if now - self._told >= (_DRAWN_EVERY if self._terminal else _LINES_EVERY):
            self._told = now
            self._tell(f"{events[-1].sequence} events, {events[-1].time}")

    def begin(self, last: int) -> None:
        """Say where it goes on."""
        self._begun = last
        self._tell(f"goes on behind event {last}" if last else "begins")
        self._told = time.monotonic()

    def end(self, last: int) -> None:
        """Say what was done."""
        self._tell(f"{last} events, {last - self._begun} of them new")

    def leave(self) -> None:
        """End the line that is open."""
        if self._open:
            click.echo(err=True)
            self._open = False

    def _tell(self, text: str) -> None:
        line = f"mirror of {self._name}: {text}"
        if self._terminal:
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)
            self._open = True
        else:
            click.echo(line, err=True)
