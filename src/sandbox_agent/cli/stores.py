"""Options that name a store, and the drivers behind them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.open import check_folder, open_driver, parse_store_url
from sandbox_agent.persist.private import make_private_folder
from sandbox_agent.persist.store.view import sqlite_store_driver
from sandbox_agent.runtime.privacy import hide_url


def store_option(*names: str, help: str, must_exist: bool = True, **settings: Any) -> Callable[..., Any]:  # noqa: A002 - click's name
    """Return an option that accepts a path or a store URL. Its value is checked and passed on as text."""

    def check(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is None:
            return None
        hide_url(value)
        try:
            store = parse_store_url(value)
            check_folder(store)
        except InvalidRequestError as error:
            raise click.BadParameter(str(error), param=parameter) from error
        path = store.path
        if path is not None and path.is_dir():
            raise click.BadParameter(f"'{path}' is a directory: use the path of a file", param=parameter)
        if path is not None and must_exist and not path.exists():
            raise click.BadParameter(f"file '{path}' does not exist", param=parameter)
        return value

    return click.option(*names, metavar="STORE", callback=check, help=help, **settings)


def state_file(name: str) -> Path:
    """Return the path of a file that the commands keep for this user, in a folder that only they can read.

    Raises:
        PersistError: the folder can't be made.
    """
    from sandbox_agent.agents.launch import data_dir

    folder = data_dir() / "cli"
    try:
        make_private_folder(folder)
    except OSError as error:
        raise PersistError(f"the folder '{folder}' can't be made: {error.strerror}") from error
    return folder / name


def chat_store() -> str:
    """Return the store of ``chat`` that is used if the user names no other."""
    return f"sqlite:{state_file('sessions.db')}"


@contextlib.asynccontextmanager
async def open_store(
    url: str, *, namespace: str | None = None, to_write: bool = False
) -> AsyncGenerator[SessionPersistDriver]:
    """Open the driver of a store and close it at the end.

    Raises:
        InvalidRequestError: The URL is invalid, its extra is not installed, or it is a server's own file and
            ``to_write`` is set.
    """
    if to_write:
        _refuse_server_store(url)
    try:
        driver = open_driver(url, namespace=namespace)
    except ImportError as error:
        raise InvalidRequestError(str(error)) from error
    try:
        yield driver
    finally:
        await driver.close()


def _refuse_server_store(url: str) -> None:
    store = parse_store_url(url)
    if store.path is not None and sqlite_store_driver(store.path) is not None:
        raise InvalidRequestError(
            f"'{store.shown}' is a server's own store, which only that server may write: use another file. "
            "Nothing was changed."
        )


def run_on_store(
    work: Callable[[SessionPersistDriver], Coroutine[Any, Any, None]], url: str, namespace: str | None
) -> None:
    """Run the work on an open store."""

    async def with_driver() -> None:
        async with open_store(url, namespace=namespace) as driver:
            await work(driver)

    asyncio.run(with_driver())
