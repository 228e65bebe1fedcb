"""A store's URL, and the driver for it. What a server's ``--store`` opens is in ``server.store``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.persist.base import SessionPersistDriver

if TYPE_CHECKING:
    from sandbox_agent.persist.store import SessionStore

__all__ = [
    "KEY_VARIABLE",
    "StoreURL",
    "check_folder",
    "open_driver",
    "open_session_store",
    "parse_store_url",
]

# The master keys of "encrypted+…" stores: base64, the current one first, older ones after commas.
KEY_VARIABLE: Final = "SANDBOX_AGENT_STORE_KEY"

_ENCRYPTED: Final = "encrypted+"
_KNOWN: Final = (
    "memory, a path or sqlite:PATH, postgres://…, redis://…, rediss://… or valkey://…, "
    "and encrypted+ before any of them"
)
# One letter is a Windows drive.
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")

_Kind = Literal["memory", "sqlite", "postgres", "redis"]
_KINDS: Final[dict[str, _Kind]] = {
    "memory": "memory",
    "sqlite": "sqlite",
    "postgres": "postgres",
    "postgresql": "postgres",
    "redis": "redis",
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
}


class StoreURL(NamedTuple):
    """The parts of a store's URL.

    Attributes:
        kind: which driver.
        where: what the driver is given: a path, or the URL.
        encrypted: whether ``encrypted+`` stood before it.
    """

    kind: _Kind
    where: str
    encrypted: bool = False

    @property
    def path(self) -> Path | None:
        """The file of an SQLite store."""
        return Path(self.where) if self.kind == "sqlite" else None

    @property
    def shown(self) -> str:
        """The store for people and logs: without user names, passwords and options."""
        prefix = _ENCRYPTED if self.encrypted else ""
        if self.kind in ("memory", "sqlite"):
            return prefix + self.where
        scheme, _, rest = self.where.partition("://")
        separators = [rest.find(character) for character in "/?#" if character in rest]
        at = rest.rfind("@")
        if at >= 0 and any(found < at for found in separators):
            # A password that isn't escaped: it is not clear where it ends.
            return f"{prefix}{scheme}://…"
        place = rest[at + 1 :].partition("?")[0].partition("#")[0]
        return f"{prefix}{scheme}://{place}"


def parse_store_url(url: str) -> StoreURL:
    """Return the parts of the URL; nothing is opened.

    A word without a dot, a slash or a scheme is the name of a file only if that file exists: it is likely a
    kind of store or a typo.

    Raises:
        InvalidRequestError: no driver is known for it.
    """
    encrypted = url.startswith(_ENCRYPTED)
    rest = url[len(_ENCRYPTED) :] if encrypted else url
    if rest == "memory":
        return StoreURL("memory", rest, encrypted)
    match = _SCHEME.match(rest)
    if match is None:
        _check_word(rest)
        return StoreURL("sqlite", _path(rest), encrypted)
    scheme = match[1].lower()
    # SQLAlchemy writes the client's package behind the scheme: postgresql+asyncpg.
    kind = _KINDS.get(scheme.partition("+")[0])
    if kind is None:
        # The scheme only: the rest may contain a password.
        raise InvalidRequestError(f"no store is known for '{scheme}:': give {_KNOWN}")
    address = rest[match.end() :]
    if kind == "memory":
        return StoreURL(kind, "memory", encrypted)
    if kind == "sqlite":
        return StoreURL(kind, _path(address.removeprefix("//")), encrypted)
    if not address.startswith("//"):
        raise InvalidRequestError(f"a '{scheme}:' store needs two slashes: {scheme}://HOST/…")
    return StoreURL(kind, rest, encrypted)


def check_folder(store: StoreURL) -> None:
    """Refuse an SQLite store in a folder that does not exist: a typo would make a new, empty store.

    Raises:
        InvalidRequestError: the folder does not exist.
    """
    path = None if store.path is None else store.path.expanduser()
    if path is not None and not path.parent.is_dir():
        raise InvalidRequestError(
            f"the store '{store.shown}' can't be made: the folder '{path.parent}' does not exist; make it, "
            "or correct the path"
        )


def open_driver(url: str, *, namespace: str | None = None) -> SessionPersistDriver:
    """Return the driver of the store that the URL names; the caller closes it.

    * ``memory``: what this process keeps.
    * ``sqlite:PATH`` or a path: the file of the SDK's SQLite driver. For the file of a server's own store
      the driver shows the server's sessions, to read.
    * ``postgres://…``, ``postgresql://…``: a PostgreSQL database.
    * ``redis://…``, ``rediss://…``, ``valkey://…``: Redis or Valkey.
    * ``encrypted+…``: any of them under encryption, with the keys of ``SANDBOX_AGENT_STORE_KEY``.

    Nothing is connected to and no file is made before the first call.

    Args:
        url: where the store is.
        namespace: the sessions of the server that keeps them in a shared database under that name, to read.

    Raises:
        InvalidRequestError: no driver is known for the URL, an option of it is invalid, its folder does not
            exist, it has no namespaces, or a key is missing.
        ImportError: the driver's extra is not installed; the message names it.
    """
    store = parse_store_url(url)
    check_folder(store)
    try:
        driver = _open(store, namespace)
    except ValueError as error:
        raise InvalidRequestError(f"the store '{store.shown}' can't be opened: {error}") from None
    if not store.encrypted:
        return driver
    current, *old = _keys()
    from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver

    return EncryptedSessionPersistDriver(driver, key=current, old_keys=old, close_inner=True)


def open_session_store(store: StoreURL, *, namespace: str) -> SessionStore:
    """Return the store of a server's sessions in a database that servers share.

    Nothing is connected to before its ``open``.

    Raises:
        PersistError: the driver's extra is not installed, or the URL is invalid.
    """
    try:
        if store.kind == "postgres":
            from sandbox_agent.persist.postgres.store import PostgresSessionStore

            return PostgresSessionStore(store.where, namespace=namespace)
        from sandbox_agent.persist.redis.ledger import RedisSessionStore

        return RedisSessionStore(store.where, namespace=namespace)
    except (ImportError, ValueError) as error:
        raise PersistError(f"the store '{store.shown}' can't be opened: {error}") from None


def _open(store: StoreURL, namespace: str | None) -> SessionPersistDriver:
    if namespace is not None and store.kind in ("memory", "sqlite"):
        raise InvalidRequestError(
            f"'{store.shown}' has no namespaces: leave the namespace out, a server's file needs none"
        )
    if store.kind == "memory":
        from sandbox_agent.persist.memory import InMemorySessionPersistDriver

        return InMemorySessionPersistDriver()
    if store.kind == "postgres":
        if namespace is not None:
            from sandbox_agent.persist.store.view import postgres_store_driver

            return postgres_store_driver(store.where, namespace=namespace)
        from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver

        return PostgresSessionPersistDriver(store.where)
    if store.kind == "redis":
        if namespace is not None:
            from sandbox_agent.persist.store.view import redis_store_driver

            return redis_store_driver(store.where, namespace=namespace)
        from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver

        return RedisSessionPersistDriver(store.where)
    return _open_sqlite(store.where)


def _open_sqlite(path: str) -> SessionPersistDriver:
    from sandbox_agent.persist.store.view import sqlite_store_driver

    of_a_server = sqlite_store_driver(path)
    if of_a_server is not None:
        return of_a_server
    from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver

    return SQLiteSessionPersistDriver(path)


def _check_word(text: str) -> None:
    if not text or any(character in text for character in "./\\~") or Path(text).exists():
        return
    kind = _KINDS.get(text.lower())
    if kind is not None:
        example = "sqlite:PATH" if kind == "sqlite" else f"{text.lower()}://HOST/…"
        raise InvalidRequestError(
            f"'{text}' is a kind of store and does not say which one: use {example}, or ./{text} for a file"
        )
    raise InvalidRequestError(
        f"there is no file '{text}', and no store of that kind: use ./{text} to make that file, or {_KNOWN}"
    )


def _path(text: str) -> str:
    if not text:
        raise InvalidRequestError("the store has no path: give sqlite:PATH, or a path")
    return text


def _keys() -> list[str]:
    keys = [part for text in os.environ.get(KEY_VARIABLE, "").split(",") if (part := text.strip())]
    if not keys:
        raise InvalidRequestError(
            f"an encrypted store needs its key: set {KEY_VARIABLE} to 32 random bytes as base64 "
            "(made by: openssl rand -base64 32)"
        )
    return keys
