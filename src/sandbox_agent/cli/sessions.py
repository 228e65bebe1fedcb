"""``sandbox-agent sessions``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import BinaryIO

import click

from sandbox_agent.cli.stores import run_on_store, store_option

__all__ = ["sessions"]

_store = store_option(
    "--store", envvar="SANDBOX_AGENT_STORE", show_envvar=True, required=True, help="A path, or a store's URL."
)

_namespace = click.option(
    "--store-namespace",
    "namespace",
    metavar="NAME",
    help="The sessions of the server that keeps them in the store under this name.",
)


@click.group()
def sessions() -> None:
    """List, show, export, import and move the sessions of a store.

    A STORE is the SQLite file of `run --store`, of the SDK's SQLite driver (Python or TypeScript) or of a
    server; or a URL: sqlite:PATH, postgres://..., redis://..., rediss://..., valkey://...; with encrypted+
    before it where it is encrypted, its key in SANDBOX_AGENT_STORE_KEY.
    """


@sessions.command("list")
@_store
@_namespace
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Sessions a page."
)
@click.option("--cursor", help="Where the page before ended.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object: items and nextCursor.")
def list_(*, store: str, namespace: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List sessions, oldest first."""
    from sandbox_agent.cli.stored import print_page

    run_on_store(
        lambda driver: print_page(driver, limit=limit, cursor=cursor, as_json=as_json), store, namespace
    )


@sessions.command()
@_store
@_namespace
@click.argument("session_id", metavar="ID")
def show(*, store: str, namespace: str | None, session_id: str) -> None:
    """Show a session as a transcript to read."""
    from sandbox_agent.cli.stored import print_transcript

    run_on_store(lambda driver: print_transcript(driver, session_id), store, namespace)


@sessions.command()
@_store
@_namespace
@click.argument("session_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All sessions of the store.")
@click.option("--with-record", is_flag=True, help="One session with its record, so that it can be resumed.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="The file to write; default: standard output.",
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
    """Export sessions as JSON lines, byte for byte what was said in `payload`.

    Of one session the events only; of several, of all and with --with-record each session's record, then
    its events.
    """
    from sandbox_agent.cli.transferring import export_sessions

    if everything == bool(session_ids):
        raise click.UsageError("name sessions, or give --all")
    with_record = with_record or everything or len(session_ids) > 1
    run_on_store(
        lambda driver: export_sessions(driver, session_ids, output, with_record=with_record),
        store,
        namespace,
    )


@sessions.command("import")
@click.argument("file", type=click.File("rb"))
@store_option("--into", required=True, must_exist=False, help="Where they go: a path, or a store's URL.")
@click.option(
    "--agent",
    metavar="ID",
    default="unknown",
    show_default=True,
    help="Whose session it is, where only events were exported.",
)
def import_(*, file: BinaryIO, into: str, agent: str) -> None:
    """Import the sessions of an exported FILE ("-": from standard input).

    What is in the store already is not stored again: an import that was interrupted goes on when it is
    run again.
    """
    from sandbox_agent.cli.transferring import import_sessions

    asyncio.run(import_sessions(file, into, agent=agent))


@sessions.command()
@click.argument("session_ids", metavar="[ID]...", nargs=-1)
@store_option("--from", "source", required=True, help="Where they are: a path, or a store's URL.")
@store_option("--to", "target", required=True, must_exist=False, help="Where they go: the same.")
@click.option(
    "--from-namespace",
    metavar="NAME",
    help="The sessions of the server that keeps them there under this name.",
)
@click.option("--keep", is_flag=True, help="Leave them in the source as well: copy.")
@click.option("--verify", is_flag=True, help="Compare every byte.")
def move(
    *,
    session_ids: tuple[str, ...],
    source: str,
    target: str,
    from_namespace: str | None,
    keep: bool,
    verify: bool,
) -> None:
    """Move sessions, all of them where no ID is given, from one store into another.

    A session is deleted in the source when it is in the target and was compared. Interrupted, it goes on
    where it was when it is run again.
    """
    from sandbox_agent.cli.transferring import move_sessions

    asyncio.run(
        move_sessions(source, target, session_ids, namespace=from_namespace, keep=keep, verify=verify)
    )
