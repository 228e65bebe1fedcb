"""Stores that commands are given: options, and drivers that are closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sandbox_agent.persist.base import SessionPersistDriver

__all__ = ["opened", "run_on_store", "store_option"]


def store_option(*names: str, help: str, must_exist: bool = True, **settings: Any) -> Callable[..., Any]:  # noqa: A002 - click's name
    """Return an option that takes a path or a URL; what it gives was checked and is the text."""

    def check(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is None:
            return None
        from sandbox_agent.errors import InvalidRequestError
        from sandbox_agent.persist.open import parse_store_url

        try:
            path = parse_store_url(value).path
        except InvalidRequestError as error:
            raise click.BadParameter(str(error), param=parameter) from error
        if path is not None and path.is_dir():
            raise click.BadParameter(f"'{path}' is a directory: name a file", param=parameter)
        if path is not None and must_exist and not path.exists():
            raise click.BadParameter(f"file '{path}' does not exist", param=parameter)
        return value

    return click.option(*names, metavar="STORE", callback=check, help=help, **settings)


@contextlib.asynccontextmanager
async def opened(
    url: str, *, namespace: str | None = None, to_write: bool = False
) -> AsyncGenerator[SessionPersistDriver]:
    """Open a store's driver and close it.

    Raises:
        InvalidRequestError: the URL names none, or a server's own file where it is to be written, or what it
            needs is not installed.
    """
    from sandbox_agent.errors import InvalidRequestError
    from sandbox_agent.persist.open import open_driver

    if to_write:
        _refuse_a_servers(url)
    try:
        driver = open_driver(url, namespace=namespace)
    except ImportError as error:
        raise InvalidRequestError(str(error)) from error
    try:
        yield driver
    finally:
        await driver.close()


def _refuse_a_servers(url: str) -> None:
    from sandbox_agent.errors import InvalidRequestError
    from sandbox_agent.persist.open import parse_store_url
    from sandbox_agent.persist.store.view import sqlite_store_driver

    store = parse_store_url(url)
    if store.path is not None and sqlite_store_driver(store.path) is not None:
        raise InvalidRequestError(
            f"nothing was done: '{store.shown}' is a server's own store, which alone writes it: "
            "name another file for sessions that the server does not keep"
        )


def run_on_store(
    work: Callable[[SessionPersistDriver], Coroutine[Any, Any, None]], url: str, namespace: str | None
) -> None:
    """Run the work on an opened store."""

    async def with_driver() -> None:
        async with opened(url, namespace=namespace) as driver:
            await work(driver)

    asyncio.run(with_driver())
