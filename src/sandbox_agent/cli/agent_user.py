"""``--agent-user``: finds the user, and checks what it can reach before the server starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.runtime.user import User, find_user

logger: logging.Logger = logging.getLogger("sandbox_agent.server")


def find_agent_user(name: str) -> User:
    """Return the user as whom agents run.

    Raises:
        InvalidRequestError: the server is not root's, the user does not exist, or it is root.
    """
    if os.geteuid() != 0:
        raise InvalidRequestError(
            f"--agent-user needs root, who can start programs as another user; this server runs as uid "
            f"{os.geteuid()}: start it as root, or leave the option out"
        )
    user = find_user(name)
    if user is None:
        raise InvalidRequestError(f"no user {name!r} on this machine: create it, for example with useradd")
    if user.uid == 0:
        raise InvalidRequestError("--agent-user must not be root, who can read everything: use another user")
    try:
        user.can(Path("/"), os.X_OK)
    except PermissionError as error:
        raise InvalidRequestError(
            f"this server can't start programs as the user {user.name!r}: give it the capabilities CHOWN, "
            "KILL, SETGID and SETUID, which containers have by default"
        ) from error
    return user


def check_agent_user(user: User, *, token_file: Path | None, store_files: Iterable[Path]) -> None:
    """Check what agents can reach. Call this before threads are started.

    Raises:
        InvalidRequestError: they can read the token or the store, or cannot use the server's folder.
    """
    for path in (*([token_file] if token_file else []), *store_files):
        if path.is_file() and user.can(path, os.R_OK):
            raise InvalidRequestError(
                f"agents would run as the user {user.name!r}, who can read '{path}': run chmod 600 on it, or "
                "move it to a folder that only root can open"
            )
    folder = Path.cwd()
    if not user.can(folder, os.R_OK | os.X_OK):
        raise InvalidRequestError(
            f"agents would start in '{folder}', which the user {user.name!r} can't open: start the server in "
            "a folder that this user may use"
        )
    if not user.can(Path(user.home), os.W_OK | os.X_OK):
        logger.warning(
            "the user %r can't write its home folder '%s': agents find no logins and settings there, and "
            "some do not start",
            user.name,
            user.home,
        )
