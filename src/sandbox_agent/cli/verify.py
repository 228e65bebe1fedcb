"""What ``sandbox-agent sessions verify`` prints, and the file of its ``--head``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

import click
import msgspec

from sandbox_agent.cli.output import open_output, printable
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.verify import KnownHead, verify_sessions

__all__ = ["print_verified", "read_heads", "write_heads"]

_FORM: Final = "sandbox-agent-heads-1"


class _Heads(msgspec.Struct):
    form: str
    sessions: dict[str, KnownHead]


async def print_verified(
    driver: SessionPersistDriver, session_ids: Sequence[str], known: Mapping[str, KnownHead]
) -> tuple[dict[str, KnownHead], bool]:
    """Verify sessions, print what is wrong, and return their heads, and whether anything is wrong."""
    heads: dict[str, KnownHead] = {}
    events = problems = 0
    async with aclosing(verify_sessions(driver, session_ids, known)) as results:
        async for one in results:
            for text in (*(f"note: {note}" for note in one.notes), *one.problems):
                click.echo(printable(f"{one.session_id}: {text}"))
            heads[one.session_id] = one.head
            events += one.events
            problems += len(one.problems)
    count = "nothing is wrong" if not problems else "1 problem" if problems == 1 else f"{problems:,} problems"
    click.echo(f"verified {len(heads):,} sessions with {events:,} events: {count}", err=True)
    return heads, problems > 0


def read_heads(path: Path, *, missing_ok: bool = False) -> dict[str, KnownHead]:
    """Read the file of ``--head``.

    Raises:
        InvalidRequestError: it does not exist (unless ``missing_ok``), or is no such file.
    """
    try:
        heads = msgspec.json.decode(path.read_bytes(), type=_Heads)
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise InvalidRequestError(f"'{path}' does not exist: use --write-head to create it") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidRequestError(
            f"'{path}' can't be read as a file of heads: {error}; nothing was verified, restore the file"
        ) from error
    if heads.form != _FORM:
        raise InvalidRequestError(
            f"'{path}' has the form '{heads.form}', which this release does not know: upgrade it"
        )
    return heads.sessions


def write_heads(path: Path, heads: Mapping[str, KnownHead]) -> None:
    """Write the file of ``--head``, or replace it.

    Raises:
        PersistError: it can't be written.
    """
    with open_output(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(_Heads(_FORM, dict(heads)))) + b"\n")
