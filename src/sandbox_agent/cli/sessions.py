"""``sandbox-agent sessions``: the sessions of a store."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

import click

from sandbox_agent.cli.event_printer import EventPrinter
from sandbox_agent.cli.output import ProgressBar, Screen, open_output, print_table
from sandbox_agent.cli.stores import chat_store, open_store, run_on_store, store_option
from sandbox_agent.cli.verify import print_verified, read_heads, write_heads
from sandbox_agent.errors import InvalidRequestError, SessionNotFoundError
from sandbox_agent.extras import require_extra
from sandbox_agent.persist.base import SessionPersistDriver, decode_cursor
from sandbox_agent.persist.open import parse_store_url
from sandbox_agent.persist.transfer.history import read_events
from sandbox_agent.persist.transfer.lines import Imported, event_line, export_lines, import_lines
from sandbox_agent.persist.transfer.sessions import Moved, copy_sessions, list_all_sessions, measure
from sandbox_agent.persist.verify import KnownHead
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.records import SessionRecord

_PAGE: Final = 500
_store = store_option(
    "--store", envvar="SANDBOX_AGENT_STORE", show_envvar=True, required=True, help="A path or a store URL."
)
_namespace = click.option(
    "--store-namespace",
    "namespace",
    metavar="NAME",
    help="Use the sessions that a server stores there under this namespace.",
)


def _check_cursor(_context: click.Context, _parameter: click.Parameter, cursor: str | None) -> str | None:
    if cursor not in (None, "0") and decode_cursor(cursor) is None:
        raise click.BadParameter(f"{cursor!r} is not a cursor of this command: use the one that it printed")
    return cursor


@click.group()
def sessions() -> None:
    """List, show, export, import and move the sessions of a store.

    A STORE is the path of an SQLite file (of `run --store`, of the SDK's SQLite driver in Python or
    TypeScript, or of a server) or a URL: sqlite:PATH, postgres://..., redis://..., rediss://...,
    valkey://.... Prefix it with encrypted+ if it is encrypted; the key is read from SANDBOX_AGENT_STORE_KEY.
    """


@sessions.command()
@store_option(
    "--store",
    envvar="SANDBOX_AGENT_STORE",
    show_envvar=True,
    help="A path or a store URL. Default: the store of 'sandbox-agent chat'.",
)
@_namespace
def browse(*, store: str | None, namespace: str | None) -> None:
    """Browse the sessions on the full terminal: search, read, open in a chat, export and delete them.

    What you type is searched in the first prompt, the agent, the folder and the id of each session.
    """
    require_extra("sandbox-agent sessions browse", "cli", "prompt_toolkit", "rich")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "sessions browse needs a terminal: without one use 'sandbox-agent sessions list' and "
            "'sessions show ID'"
        )
    url = store or chat_store()
    path = parse_store_url(url).path
    if path is not None and not path.exists():
        raise click.UsageError("there are no sessions of 'sandbox-agent chat' yet: pass --store")
    chosen: SessionRecord | None = None

    async def show_browser(driver: SessionPersistDriver) -> None:
        from sandbox_agent.cli.browse import Browser

        nonlocal chosen
        chosen = await Browser(driver).run()

    run_on_store(show_browser, url, namespace)
    if chosen is None:
        return
    if namespace is not None:
        raise InvalidRequestError(
            "the sessions of a server can't be opened in a chat: only that server may write them"
        )
    # A chat protects its memory from the start, and the URL of the store may have a password.
    words = [sys.executable, "-m", "sandbox_agent", "chat", f"--session={chosen.id}"]
    os.execve(sys.executable, words, {**os.environ, "SANDBOX_AGENT_STORE": url})  # noqa: S606 - this command


@sessions.command("list")
@_store
@_namespace
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, help="Sessions per page.")
@click.option("--cursor", callback=_check_cursor, help="The cursor that the previous page printed.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object: items and nextCursor.")
def list_(*, store: str, namespace: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List sessions, oldest first."""

    async def print_page(driver: SessionPersistDriver) -> None:
        page = await driver.list_sessions(limit=limit, cursor=cursor)
        if as_json:
            click.echo(dumps({"items": page.items, "nextCursor": page.next_cursor}))
            return
        rows: list[list[str]] = []
        for record in page.items:
            count = await driver.last_event_index(record.id)
            state = "destroyed" if record.destroyed_at is not None else ""
            rows.append([record.id, record.agent, _format_time(record.created_at), f"{count:,}", state])
        print_table(["ID", "AGENT", "CREATED", "EVENTS", ""], rows, right=3)
        if page.next_cursor is not None:
            click.echo(f"more: --cursor {page.next_cursor}", err=True)

    run_on_store(print_page, store, namespace)


@sessions.command()
@_store
@_namespace
@click.argument("session_id", metavar="ID")
def show(*, store: str, namespace: str | None, session_id: str) -> None:
    """Show the transcript of a session."""

    async def print_transcript(driver: SessionPersistDriver) -> None:
        record = await _get_session(driver, session_id)
        screen = Screen(sys.stdout, sys.stdout)
        created = _format_time(record.created_at)
        screen.note(f"session {record.id}  agent {record.agent}  created {created}", "dim")
        printer = EventPrinter(screen, client=True)
        async for event in read_events(driver, session_id):
            printer.print_event(event)
        screen.end_line()

    run_on_store(print_transcript, store, namespace)


@sessions.command()
@_store
@_namespace
@click.argument("session_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Export all sessions of the store.")
@click.option("--with-record", is_flag=True, help="Include the record of a single session, to resume it.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="File to write. Default: standard output.",
)
def export(
    *,
    store: str,
    namespace: str | None,
    session_ids: tuple[str, ...],
    everything: bool,
    with_record: bool,
    output: Path | None,
) -> None:
    """Export sessions as JSON lines. The `payload` of an event is unchanged, byte for byte.

    One session is exported as its events only. Several sessions, all sessions, or one session with
    --with-record are exported as the record of each session, followed by its events.
    """
    if everything == bool(session_ids):
        raise click.UsageError("pass session ids or --all")
    events_only = len(session_ids) == 1 and not with_record

    async def export_sessions(driver: SessionPersistDriver) -> None:
        for session_id in session_ids:
            await _get_session(driver, session_id)
        records = _records(driver, session_ids)
        lines = _event_lines(driver, *session_ids) if events_only else export_lines(driver, records)
        with open_output(output) as file:
            async with aclosing(lines):
                async for line in lines:
                    file.write(line + b"\n")

    run_on_store(export_sessions, store, namespace)


@sessions.command("import")
@click.argument("file", type=click.File("rb"))
@store_option("--into", required=True, must_exist=False, help="Target: a path or a store URL.")
@click.option(
    "--agent",
    metavar="ID",
    default="unknown",
    help="Agent of a session that was exported without its record.",
)
def import_(*, file: BinaryIO, into: str, agent: str) -> None:
    """Import the sessions of an exported FILE ("-": from standard input).

    Events that are already in the store are not stored again. To continue an interrupted import, run it
    again.
    """
    asyncio.run(_import_sessions(file, into, agent))


async def _import_sessions(file: BinaryIO, into: str, agent: str) -> None:
    store = parse_store_url(into)
    async with open_store(into, to_write=True) as driver:
        with ProgressBar("importing") as bar:

            def report(done: Imported) -> None:
                bar.update(done.events, f"{done.sessions:,} sessions, {done.events:,} events")

            done = await import_lines(driver, file, agent=agent, on_progress=report)
    existing = done.events - done.stored
    click.echo(
        f"imported {_count(done.sessions, 'session')}, {_count(done.stored, 'event')} into {store.shown}"
        + (f"; {existing:,} more were already there" if existing else ""),
        err=True,
    )
    if done.complete is False:
        click.echo("the export has no final line: it may be truncated", err=True)


@sessions.command()
@click.argument("session_ids", metavar="[ID]...", nargs=-1)
@store_option("--from", "source_url", required=True, help="Source: a path or a store URL.")
@store_option("--to", "target_url", required=True, must_exist=False, help="Target: a path or a store URL.")
@click.option(
    "--from-namespace",
    metavar="NAME",
    help="Use the sessions that a server stores in the source under this namespace.",
)
@click.option("--keep", is_flag=True, help="Copy: do not delete the sessions in the source.")
@click.option("--verify", is_flag=True, help="Compare every byte.")
def move(
    *,
    session_ids: tuple[str, ...],
    source_url: str,
    target_url: str,
    from_namespace: str | None,
    keep: bool,
    verify: bool,
) -> None:
    """Move sessions from one store into another: those with an ID, or all.

    A session is deleted in the source after it was stored in the target and compared. To continue an
    interrupted move, run it again.
    """

    async def move_sessions() -> None:
        ids = list(session_ids) or None
        start = time.monotonic()
        async with (
            open_store(source_url, namespace=from_namespace) as source,
            open_store(target_url, to_write=True) as target,
        ):
            total = await measure(source, ids)
            label = f"{'copying' if keep else 'moving'} {total.sessions:,} sessions"
            with ProgressBar(label, total.indexes) as bar:

                def report(moved: Moved) -> None:
                    counts = f"{moved.sessions:,} of {total.sessions:,} sessions, {moved.events:,} events"
                    bar.update(min(moved.indexes, total.indexes), counts)

                moved = await copy_sessions(
                    source, target, session_ids=ids, delete=not keep, verify=verify, on_progress=report
                )
        existing = max(0, moved.indexes - moved.stored)
        click.echo(
            f"{'copied' if keep else 'moved'} {_count(moved.sessions, 'session')} into "
            f"{parse_store_url(target_url).shown}: {_count(moved.stored, 'event')} stored"
            + (f", {existing:,} were already there" if existing else "")
            + f", {'every byte compared' if verify else 'ends compared'}, {time.monotonic() - start:.1f} s",
            err=True,
        )

    asyncio.run(move_sessions())


@sessions.command()
@_store
@_namespace
@click.argument("session_ids", metavar="[ID]...", nargs=-1)
@click.option(
    "--head",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Compare with the heads in this file, and update it if nothing is wrong.",
)
@click.option("--write-head", is_flag=True, help="Write the file of --head without comparing.")
def verify(
    *, store: str, namespace: str | None, session_ids: tuple[str, ...], head: Path | None, write_head: bool
) -> None:
    """Verify the sessions with an ID, or all of the store.

    Prints what is wrong, and exits with 1 if anything is. In encrypted sessions it finds events that are
    missing, in another order, changed or older copies; in others only events that are missing between two.

    With --head it also finds an older copy of a session, or of the whole store. The file has the last index
    of each session and a digest of its events. Keep it where the programs that write the store can't change
    it. --write-head creates it. It also accepts what is in the store now, such as deleted sessions.
    """
    if write_head and head is None:
        raise click.UsageError("--write-head needs --head FILE")
    there = {} if head is None else read_heads(head, missing_ok=write_head)
    heads: dict[str, KnownHead] = {}
    failed = False

    async def verify_sessions(driver: SessionPersistDriver) -> None:
        nonlocal heads, failed
        heads, failed = await print_verified(driver, session_ids, {} if write_head else there)

    run_on_store(verify_sessions, store, namespace)
    if head is not None and (write_head or not failed):
        write_heads(head, {**(there if session_ids else {}), **heads})
    if failed:
        raise SystemExit(1)


async def _get_session(driver: SessionPersistDriver, session_id: str) -> SessionRecord:
    record = await driver.get_session(session_id)
    if record is None:
        raise SessionNotFoundError(session_id)
    return record


async def _records(driver: SessionPersistDriver, session_ids: Sequence[str]) -> AsyncGenerator[SessionRecord]:
    if not session_ids:
        async with aclosing(list_all_sessions(driver)) as records:
            async for record in records:
                yield record
    for session_id in session_ids:
        yield await _get_session(driver, session_id)


async def _event_lines(driver: SessionPersistDriver, session_id: str) -> AsyncGenerator[bytes]:
    async with aclosing(read_events(driver, session_id)) as events:
        async for event in events:
            yield event_line(event)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _format_time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"
