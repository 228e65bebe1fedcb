"""``sandbox-agent sessions``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sandbox_agent.persist.sqlite import SQLiteSessionPersistDriver

__all__ = ["sessions"]

_store = click.option(
    "--store",
    envvar="SANDBOX_AGENT_STORE",
    show_envvar=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The SQLite file.",
)


@click.group()
def sessions() -> None:
    """List, show and export the sessions of a store.

    A store is the SQLite file of `run --store` or of the SDK's SQLite driver, in Python or TypeScript.
    """


@sessions.command("list")
@_store
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Sessions a page."
)
@click.option("--cursor", help="Where the page before ended.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object: items and nextCursor.")
def list_(*, store: Path, limit: int, cursor: str | None, as_json: bool) -> None:
    """List sessions, oldest first."""
    from sandbox_agent.cli.stored import print_page

    _run(lambda driver: print_page(driver, limit=limit, cursor=cursor, as_json=as_json), store)


@sessions.command()
@_store
@click.argument("session_id", metavar="ID")
def show(*, store: Path, session_id: str) -> None:
    """Show a session as a transcript to read."""
    from sandbox_agent.cli.stored import print_transcript

    _run(lambda driver: print_transcript(driver, session_id), store)


@sessions.command()
@_store
@click.argument("session_id", metavar="ID")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="The file to write; default: standard output.",
)
def export(*, store: Path, session_id: str, output: Path | None) -> None:
    """Export a session's events as JSON lines, byte for byte what was said in `payload`."""
    from sandbox_agent.cli.stored import export_events

    _run(lambda driver: export_events(driver, session_id, output), store)


def _run(work: Callable[[SQLiteSessionPersistDriver], Coroutine[Any, Any, None]], store: Path) -> None:
    import asyncio

    from sandbox_agent.persist.sqlite import SQLiteSessionPersistDriver

    async def with_driver() -> None:
        driver = SQLiteSessionPersistDriver(store)
        try:
            await work(driver)
        finally:
            await driver.close()

    asyncio.run(with_driver())
