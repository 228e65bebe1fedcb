"""Output to a file, which appears only when it is complete."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from sandbox_agent.errors import PersistError


@contextlib.contextmanager
def open_output(path: Path | None) -> Generator[BinaryIO]:
    """Open a file for writing, or standard output if the path is None.

    The data goes to a temporary file in the same folder, which replaces the file at the end.

    Raises:
        PersistError: The file cannot be written.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(partial.unlink, missing_ok=True)
            with partial.open("wb") as file:
                yield file
            partial.replace(path)
    except OSError as error:
        raise PersistError(f"'{path}' can't be written: {error.strerror}") from error
