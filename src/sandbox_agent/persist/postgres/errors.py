"""What a PostgreSQL error means and what to do about it, in one line and without the password."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote, urlsplit

from sandbox_agent.errors import PersistError

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "28P01": "refuses the user or the password: check the connection string",
        "28000": "refuses the user: check the connection string and the server's pg_hba.conf",
        "3D000": "has no such database: create it, or name another one in the connection string",
        "3F000": "has no such schema: create it, or give this user the right to",
        "42501": "does not allow it to this user, nothing was stored: grant the rights (tables, schema, or "
        "CREATE on the database)",
        "42P01": "has lost the store's tables, nothing was stored: it was emptied or is another database; "
        "bring the right one back, or open the store again to begin with an empty one",
        "53100": "can't grow, nothing was stored: the server's disk is full, free some space, then try again",
        "53200": "is out of memory, nothing was stored: try again with less at once",
        "53300": "takes no more connections: close some, lower max_size, or raise the server's "
        "max_connections",
        "57P03": "is starting or stopping: try again",
        "57014": "took too long, nothing was stored: try again, or give the driver a longer timeout",
        "55P03": "is locked by another program, nothing was stored: try again",
        "40P01": "found a deadlock, nothing was stored: try again",
        "40001": "found a conflict with another transaction, nothing was stored: try again",
        "23505": "refuses the row, nothing was stored: it contradicts a row that is there",
        "25006": "is read-only (a standby?), nothing was stored: name the primary server",
        "26000": "is behind a pool that does not keep prepared statements: make the pool that is handed in "
        "with statement_cache_size=0",
        "42P05": "is behind a pool that mixes prepared statements: make the pool that is handed in with "
        "statement_cache_size=0",
    }
)
_UNREADABLE: Final = "the connection string's address"
_MAX_WORDS: Final = 300


def sqlstate(error: BaseException) -> str:
    """Return the five letters that PostgreSQL gives to an error; empty where it has none."""
    code: object = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else ""


def is_lost(error: BaseException) -> bool:
    """Tell whether the connection ended under a call: its outcome is not known then."""
    code = sqlstate(error)
    if code:
        return code.startswith("08") or code in {"57P01", "57P02", "57P05"}
    if isinstance(error, TimeoutError):
        return False
    # asyncpg's InterfaceError for a connection that is closed already, and whatever the socket raises.
    return isinstance(error, OSError) or "clos" in str(error)


def describe_target(connection_string: str | None) -> str:
    """Return host, port and database of a connection string, never user and password."""
    if connection_string is None:
        return "the pool that was handed in"
    try:
        parts = urlsplit(connection_string)
        host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    except ValueError:
        return _UNREADABLE
    # A password with characters that should have been escaped may be anywhere.
    if parts.scheme not in {"postgres", "postgresql"} or "@" in parts.path + parts.query:
        return _UNREADABLE if connection_string else "the server of the environment"
    return f"'{host or 'localhost'}{parts.path}'"


def hide_password(text: str, connection_string: str | None) -> str:
    """Return the text without the connection string and the password in it."""
    if not connection_string:
        return text
    secrets = {connection_string}
    credentials = connection_string.partition("://")[2].rpartition("@")[0]
    password = credentials.partition(":")[2]
    secrets |= {password, unquote(password), credentials}
    try:
        query = urlsplit(connection_string).query
    except ValueError:
        query = ""
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name in {"password", "passfile", "sslpassword"}:
            secrets |= {value, unquote(value)}
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def explain_postgres(
    error: BaseException, target: str, *, reached: bool, connection_string: str | None = None
) -> PersistError:
    """Return the error for people; PostgreSQL's own words follow in brackets.

    Args:
        error: what asyncpg, or the socket, raised.
        target: where the store is, as ``describe_target`` says it.
        reached: whether a connection was there, so that the call may have been carried out.
        connection_string: it and its password are not shown.
    """
    code = sqlstate(error)
    words = hide_password(" ".join(str(error).split()), connection_string)
    if len(words) > _MAX_WORDS:
        words = words[:_MAX_WORDS] + "…"
    detail = f"{type(error).__name__}: {words}" if words else type(error).__name__
    if code in _ADVICE:
        return PersistError(f"the store at {target} {_ADVICE[code]} ({detail})")
    if reached and (is_lost(error) or isinstance(error, TimeoutError)):
        what = "did not answer in time" if isinstance(error, TimeoutError) else "broke off the connection"
        return PersistError(
            f"the store at {target} {what}, what was being written may be stored or not: call again, "
            f"events that are there are recognised ({detail})"
        )
    if isinstance(error, FileNotFoundError) and "sslrootcert=" in (connection_string or ""):
        return PersistError(f"the store at {target} can't be opened: sslrootcert: the file does not exist")
    if (not reached and isinstance(error, (OSError, TimeoutError))) or code.startswith(("08", "57")):
        return PersistError(
            f"the store at {target} can't be reached, nothing was stored: check that the server runs and "
            f"can be reached from here, then try again ({detail})"
        )
    if not reached and not code:
        # asyncpg's words may quote a part of the password that it took for something else.
        return PersistError(
            f"the store at {target} can't be opened: check the connection string, in which a password's "
            f"special characters are written as %XX ({type(error).__name__})"
        )
    if code.startswith("22") or isinstance(error, (ValueError, OverflowError)):
        return PersistError(f"the store at {target} can't hold a value, nothing was stored ({detail})")
    return PersistError(f"the store at {target} failed, nothing was stored: see its message ({detail})")
