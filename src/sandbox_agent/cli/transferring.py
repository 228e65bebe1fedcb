"""What ``sessions export``, ``import`` and ``move`` do."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import BinaryIO

import click

from sandbox_agent.cli.progress_bar import Bar
from sandbox_agent.cli.stores import opened
from sandbox_agent.errors import PersistError, SessionNotFoundError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.open import parse_store_url
from sandbox_agent.persist.transfer.lines import Imported, event_line, export_lines, import_lines
from sandbox_agent.persist.transfer.sessions import Moved, copy_sessions, list_all_sessions, measure
from sandbox_agent.wire.records import SessionRecord

__all__ = ["export_sessions", "import_sessions", "move_sessions"]

_PAGE = 500


async def export_sessions(
    driver: SessionPersistDriver,
    session_ids: Sequence[str],
    output: Path | None,
    *,
    with_record: bool,
) -> None:
    """Write sessions as JSON lines; all of them where no id is given.

    Raises:
        SessionNotFoundError: the store has none of an id; nothing is written.
        PersistError: the file can't be written.
    """
    for session_id in session_ids:
        if await driver.get_session(session_id) is None:
            raise SessionNotFoundError(session_id)
    lines = (
        export_lines(driver, _records(driver, session_ids))
        if with_record
        else _events_only(driver, session_ids[0])
    )
    if output is None:
        await _write(lines, sys.stdout.buffer)
        return
    # Written beside its place and moved there when it is whole.
    partial = output.with_name(output.name + ".partial")
    try:
        with ExitStack() as cleanup:
            cleanup.callback(partial.unlink, missing_ok=True)
            with partial.open("wb") as file:
                await _write(lines, file)
            partial.replace(output)
    except OSError as error:
        raise PersistError(f"'{output}' can't be written: {error.strerror}") from error


async def import_sessions(file: BinaryIO, into: str, *, agent: str) -> None:
    """Store the sessions of an export.

    Raises:
        InvalidRequestError: a line is damaged.
        PersistError: the store has another history of a session, or failed.
    """
    store = parse_store_url(into)
    async with opened(into, to_write=True) as driver:
        with Bar("importing", None) as bar:

            def told(done: Imported) -> None:
                bar.reach(done.events, f"{done.sessions:,} sessions, {done.events:,} events")

            done = await import_lines(driver, file, agent=agent, told=told)
    already = done.events - done.stored
    click.echo(
        f"imported {done.sessions:,} {_noun('session', done.sessions)}, {done.stored:,} "
        f"{_noun('event', done.stored)} into {store.shown}"
        + (f"; {already:,} more were there already" if already else ""),
        err=True,
    )
    if done.complete is False:
        click.echo("the export has no last line: it may have been cut off", err=True)


async def move_sessions(
    source_url: str,
    target_url: str,
    session_ids: Sequence[str],
    *,
    namespace: str | None,
    keep: bool,
    verify: bool,
) -> None:
    """Move sessions, all where none is named, from one store into another.

    Raises:
        SessionNotFoundError: the source has none of an id.
        InvalidRequestError: both are one store, or the source can't delete.
        PersistError: the target has another history of a session, or a store failed.
    """
    ids = list(session_ids) or None
    began = time.monotonic()
    async with (
        opened(source_url, namespace=namespace) as source,
        opened(target_url, to_write=True) as target,
    ):
        total = await measure(source, ids)
        verb = "copying" if keep else "moving"
        with Bar(f"{verb} {total.sessions:,} sessions", total.indexes) as bar:

            def told(moved: Moved) -> None:
                bar.reach(
                    min(moved.indexes, total.indexes),
                    f"{moved.sessions:,} of {total.sessions:,} sessions, {moved.events:,} events",
                )

            moved = await copy_sessions(
                source, target, session_ids=ids, delete=not keep, verify=verify, told=told
            )
    took = time.monotonic() - began
    already = max(0, moved.indexes - moved.stored)
    click.echo(
        f"{'copied' if keep else 'moved'} {moved.sessions:,} {_noun('session', moved.sessions)} into "
        f"{parse_store_url(target_url).shown}: {moved.stored:,} {_noun('event', moved.stored)} stored"
        + (f", {already:,} were there already" if already else "")
        + f", {'every byte compared' if verify else 'ends compared'}, {took:.1f} s",
        err=True,
    )


def _noun(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"


async def _records(driver: SessionPersistDriver, session_ids: Sequence[str]) -> AsyncGenerator[SessionRecord]:
    if not session_ids:
        async with aclosing(list_all_sessions(driver)) as records:
            async for record in records:
                yield record
    for session_id in session_ids:
        record = await driver.get_session(session_id)
        if record is None:
            raise SessionNotFoundError(session_id)
        yield record


async def _events_only(driver: SessionPersistDriver, session_id: str) -> AsyncGenerator[bytes]:
    cursor: str | None = None
    while True:
        page = await driver.list_events(session_id, limit=_PAGE, cursor=cursor)
        for event in page.items:
            yield event_line(event)
        cursor = page.next_cursor
        if cursor is None:
            return


async def _write(lines: AsyncGenerator[bytes], file: BinaryIO) -> None:
    async with aclosing(lines):
        async for line in lines:
            file.write(line + b"\n")
    file.flush()
