"""What the commands share that run a program in the sandbox: their options, and its input."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any, Final

import click

# What follows the name of the program is the program's.
COMMAND_SETTINGS: Final[dict[str, Any]] = {"allow_interspersed_args": False}


def _read_variables(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    variables: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--env must be NAME=VALUE, not {text!r}")
        variables[name] = value
    return variables


def command_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the program with its arguments, working directory and variables: ``command``, ``cwd``, ``env``."""
    for option in (
        click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND..."),
        click.option(
            "--env",
            multiple=True,
            callback=_read_variables,
            metavar="NAME=VALUE",
            help="A variable for the command. Can be repeated.",
        ),
        click.option(
            "--cwd", metavar="PATH", help="Working directory in the sandbox. Default: the server's."
        ),
    ):
        command = option(command)
    return command


async def read_available(fd: int, size: int) -> bytes:
    """Return what a descriptor has next, at most so many bytes; empty at its end.

    Unlike a read in a thread, it can be cancelled.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    while True:
        try:
            loop.add_reader(fd, ready.set)
        except PermissionError:  # a file can always be read
            return os.read(fd, size)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)
        try:
            return os.read(fd, size)
        except BlockingIOError:  # another program was faster
            ready.clear()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""  # the terminal is gone
