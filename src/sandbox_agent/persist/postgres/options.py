"""Options of a connection string that other clients of PostgreSQL know, and asyncpg does not."""

from __future__ import annotations

import re
import ssl
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_plus

# SQLAlchemy writes the client's package behind the scheme.
_PACKAGE: Final = re.compile(r"(postgres(?:ql)?)\+\w+(?=://)")
_VALUES: Final = {
    "channel_binding": ("disable", "prefer"),
    "pgbouncer": ("true", "false"),
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
}
# The options that are read here and not passed on.
_REMOVED: Final = {"application_name", "channel_binding", "connect_timeout", "pgbouncer"}


class Options(NamedTuple):
    """A connection string, and the options that were read from it.

    Attributes:
        connection_string: The string for asyncpg.
        arguments: More arguments for asyncpg.
        connect_timeout: Seconds in which a connection must be open; None for the default.
        pooled: Whether a pooler gives each transaction another connection (Prisma's ``pgbouncer=true``).
    """

    connection_string: str | None
    arguments: dict[str, Any]
    connect_timeout: float | None
    pooled: bool


def read_options(connection_string: str | None, application_name: str) -> Options:
    """Read the options of a connection string.

    Args:
        connection_string: The string, or None.
        application_name: What the server calls the connections if the string does not say.

    Raises:
        ValueError: The value of an option is invalid or not supported.
    """
    address, question_mark, query = (connection_string or "").partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    given = {name: unquote_plus(value) for name, _, value in pairs}
    if given.get("channel_binding") == "require":
        raise ValueError(
            "channel_binding=require is not supported by asyncpg: use channel_binding=prefer, and "
            "sslmode=verify-full to be sure of the server"
        )
    for name, values in _VALUES.items():
        if given.get(name, values[0]) not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}, not {given[name]!r}")
    timeout = given.get("connect_timeout", "0")
    if not re.fullmatch(r"-?\d{1,9}", timeout):
        raise ValueError(f"connect_timeout must be a number of seconds, not {timeout!r}")
    # A pooler may refuse settings that it does not know; this one they all know.
    arguments: dict[str, Any] = {
        "server_settings": {"application_name": given.get("application_name", application_name)}
    }
    removed = _REMOVED
    if given.get("sslrootcert") == "system":  # as in libpq, the server is verified whatever the sslmode
        arguments["ssl"] = ssl.create_default_context()
        removed = _REMOVED | {"sslmode", "sslrootcert"}
    rest = "&".join("".join(pair) for pair in pairs if pair[0] not in removed)
    string = _PACKAGE.sub(r"\1", address) + (question_mark and rest and f"?{rest}")
    return Options(
        None if connection_string is None else string,
        arguments,
        max(int(timeout), 0) or None,
        given.get("pgbouncer") == "true",
    )
