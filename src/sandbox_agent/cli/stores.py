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
async def opened(url: str, *, namespace: str | None = None) -> AsyncGenerator[SessionPersistDriver]:
    """Open a store's driver and close it.

    Raises:
        InvalidRequestError: the URL names none, or what it needs is not installed.
    """
    from sandbox_agent.errors import InvalidRequestError
    from sandbox_agent.persist.open import open_driver

    try:
        driver = open_driver(url, namespace=namespace)
    except ImportError as error:
        raise InvalidRequestError(str(error)) from error
    try:
        yield driver
    finally:
        await driver.close()


def run_on_store(
    work: Callable[[SessionPersistDriver], Coroutine[Any, Any, None]], url: str, namespace: str | None
) -> None:
    """Run the work on an opened store."""

    async def with_driver() -> None:
        async with opened(url, namespace=namespace) as driver:
            await work(driver)

    asyncio.run(with_driver())
