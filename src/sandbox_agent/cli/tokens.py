"""The options for a server's token: as an argument, a variable or a file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource

from sandbox_agent.cli.logs import MIN_SECRET
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.runtime.privacy import hide_argument, take_variable

TOKEN_VARIABLE = "SANDBOX_AGENT_TOKEN"  # noqa: S105 - its name
_MAX_BYTES = 64 * 1024
# How shells and ``local()`` name an inherited descriptor.
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def token_option(help_text: str, *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option ``--token``. Its value is removed from the command line and the environment.

    Args:
        help_text: its help.
        *names: its names; without any, ``--token`` and ``-t``.
    """
    return click.option(
        *(names or ("--token", "-t")),
        envvar=TOKEN_VARIABLE,
        show_envvar=True,
        metavar="TOKEN",
        help=help_text,
        callback=_hide,
    )


def _hide(context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    take_variable(TOKEN_VARIABLE)
    if value and context.get_parameter_source("token") is ParameterSource.COMMANDLINE:
        hide_argument(value)
    return value


def read_token(token: str | None, token_file: Path | None, *, no_token: bool) -> str | None:
    """Return the server's token, or None to serve without one. A file comes before the variable.

    Raises:
        InvalidRequestError: the token is empty, short or no header can carry it, or it is given twice.
    """
    if no_token:
        return None
    source = click.get_current_context().get_parameter_source("token")
    if token_file is not None:
        if source is ParameterSource.COMMANDLINE:
            raise InvalidRequestError("--token and --token-file exclude each other: pass only the file")
        token = _read_file(token_file)
    if token is None:
        return None
    where = "--token-file FILE" if token_file is not None else "--token TOKEN"
    if not token.strip():
        raise InvalidRequestError(f"the token is empty: pass {where}, or --no-token to serve without one")
    if len(token) < MIN_SECRET:
        raise InvalidRequestError(
            f"the token has {len(token)} characters, which can be guessed: pass one of at least {MIN_SECRET}"
        )
    return token


def _read_file(path: Path) -> str:
    descriptor = _descriptor(path)
    try:
        # A descriptor is read and closed, unless it is a standard one: nothing that is started later gets it.
        closed = descriptor is None or descriptor > 2
        with open(path if descriptor is None else descriptor, "rb", closefd=closed) as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode().strip("\r\n")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidRequestError(f"the token file '{path}' can't be read: {reason}") from error
    if len(data) > _MAX_BYTES or not (text.isascii() and text.isprintable()):
        raise InvalidRequestError(
            f"the token file '{path}' must hold the token alone, one line of printable ASCII characters"
        )
    return text


def _descriptor(path: Path) -> int | None:
    found = _DESCRIPTOR.fullmatch(os.fspath(path))
    return None if found is None else int(found[1])


def stays_readable(token_file: Path | None) -> Path | None:
    """Return the file if it can be read again: the number of a descriptor that was read may be another's."""
    return None if token_file is None or _descriptor(token_file) is not None else token_file


def readable_by_others(path: Path) -> bool:
    """Return whether users other than its owner may read a file."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & (stat.S_IRGRP | stat.S_IROTH))
