"""What an SQLite error means and what to do about it, in one line."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from types import MappingProxyType

from sandbox_agent.errors import PersistError

# Primary result codes, https://www.sqlite.org/rescode.html
_ADVICE: Mapping[int, str] = MappingProxyType(
    {
        sqlite3.SQLITE_BUSY: "is locked by another program, nothing was stored: "
        "close the program that holds it, then try again",
        sqlite3.SQLITE_LOCKED: "is locked by another statement, nothing was stored: try again",
        sqlite3.SQLITE_FULL: "can't grow, nothing was stored: the disk is full (or a quota is), "
        "free some space, then try again",
        sqlite3.SQLITE_READONLY: "is read-only, nothing was stored: "
        "give this user write access to the file and its folder, or name another file",
        sqlite3.SQLITE_PERM: "may not be used by this user: change its permissions, or name another file",
        sqlite3.SQLITE_CANTOPEN: "can't be opened: check that the path names a file (not a folder) in a "
        "folder that this user may write to",
        sqlite3.SQLITE_NOTADB: "is not an SQLite database: name another file, or move this one away",
        sqlite3.SQLITE_CORRUPT: "is damaged: stop what uses it, keep a copy, and repair it with "
        "'sqlite3 FILE .recover'",
        sqlite3.SQLITE_IOERR: "could not be read or written, nothing was stored: "
        "check the disk (full, failing, or over a size limit), then try again",
        sqlite3.SQLITE_TOOBIG: "refuses a value, nothing was stored: it is larger than SQLite holds (1 GB)",
        sqlite3.SQLITE_CONSTRAINT: "refuses the row, nothing was stored: it contradicts a row that is there",
    }
)


def error_code(error: BaseException) -> int:
    """Return SQLite's primary result code of an exception, 0 where it has none."""
    code: object = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF if isinstance(code, int) else 0


def explain_sqlite(error: Exception, path: str) -> PersistError:
    """Return the error for people; SQLite's own words follow in brackets."""
    store = f"store '{path}'" if path else "temporary store (in the folder of SQLITE_TMPDIR or TMPDIR)"
    if isinstance(error, (OverflowError, UnicodeError)):
        return PersistError(f"the {store} can't hold a value, nothing was stored: {error}")
    advice = _ADVICE.get(error_code(error), "failed, nothing was stored: see SQLite's message")
    name: object = getattr(error, "sqlite_errorname", type(error).__name__)
    explained = PersistError(f"the {store} {advice} ({name}: {error})")
    explained.__cause__ = error
    return explained


def is_damage(error: PersistError) -> bool:
    """Return whether an explained error says that the file is damaged."""
    return error_code(error.__cause__ or error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
