"""``sandbox-agent mirror``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import click

from sandbox_agent.cli.output import ProgressBar, printable
from sandbox_agent.cli.remote import Remote, remote_options, run_remote
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.open import check_folder, parse_store_url
from sandbox_agent.runtime.privacy import hide_url
from sandbox_agent.wire.universal import UniversalEvent

if TYPE_CHECKING:
    from sandbox_agent.client.server_sessions.api import ServerSessions

# Events per request with --once.
_PAGE: Final = 1_000


class _Sink(Protocol):
    async def last_sequence(self, session_id: str, /) -> int: ...
    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None: ...
    async def close(self) -> None: ...


@click.command()
@click.argument("session_id", metavar="SESSION")
@click.option(
    "--into",
    required=True,
    envvar="SANDBOX_AGENT_MIRROR",
    show_envvar=True,
    metavar="SINK",
    help="Database to copy to: postgres://…, redis://… or sqlite:PATH.",
)
@click.option("--once", is_flag=True, help="Copy what exists now and end.")
@remote_options
def mirror(*, remote: Remote, session_id: str, into: str, once: bool) -> None:
    """Copy the events of a server's SESSION into a database, each exactly once.

    Continues after the last event in the database, reconnects when the connection or the server is lost,
    and ends with the session. It can be stopped and started again at any time.
    """
    hide_url(into)
    sink = _open_sink(into)
    run_remote(remote, lambda api: _mirror_session(api, session_id, sink, once=once))


def _open_sink(url: str) -> _Sink:
    place = parse_store_url(url)
    check_folder(place)
    if place.encrypted or place.kind == "memory":
        raise InvalidRequestError(
            f"can't mirror into '{place.shown}': use a postgres://, redis:// or sqlite: URL"
        )
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


async def _mirror_session(api: ServerSessions, session_id: str, sink: _Sink, *, once: bool) -> None:
    label = f"mirror of {printable(session_id)}"
    try:
        first = await sink.last_sequence(session_id)
        click.echo(f"{label}: {f'continues after event {first}' if first else 'starts'}", err=True)
        with ProgressBar(label) as bar:
            reporting = _ReportingSink(sink, bar)
            if once:
                last = await _copy_history(api, session_id, reporting, first)
            else:
                last = await api.mirror(session_id, into=reporting)
        click.echo(f"{label}: {last} events, {last - first} of them new", err=True)
    finally:
        await sink.close()


async def _copy_history(api: ServerSessions, session_id: str, sink: _ReportingSink, last: int) -> int:
    while True:
        page = await api.get_events(session_id, offset=last, limit=_PAGE)
        if page.events:
            await sink.insert_events(session_id, page.events)
            last = page.events[-1].sequence
        if not page.has_more or not page.events:
            return last


class _ReportingSink:
    def __init__(self, sink: _Sink, bar: ProgressBar) -> None:
        self._sink = sink
        self._bar = bar

    async def last_sequence(self, session_id: str, /) -> int:
        return await self._sink.last_sequence(session_id)

    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        await self._sink.insert_events(session_id, events)
        self._bar.update(events[-1].sequence, f"{events[-1].sequence} events, {events[-1].time}")
