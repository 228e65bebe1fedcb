"""Errors of Redis and its library, explained in one line."""

from __future__ import annotations

import re
from typing import Final

from sandbox_agent.errors import PersistError

_REFUSALS: Final = {
    "OOM": "it has reached its maxmemory and takes no writes: give it memory, or delete sessions",
    "READONLY": "it is a replica that takes no writes: wait for the failover, or name the primary",
    "LOADING": "it has just started and reads its data: try again in a moment",
    "MISCONF": "it can't write its disk and takes no writes: look at its log",
    "NOREPLICAS": "too few replicas are connected (min-replicas-to-write): restore them",
    "NOAUTH": "it requires a password: add it to the URL",
    "WRONGPASS": "it knows no such name and password: correct the URL",
    "NOPERM": "the user lacks a permission: the page on Redis lists the commands and keys",
    "CLUSTERDOWN": "the cluster has lost some of its slots: wait for it, or repair it",
    "WRONGTYPE": "another program's value has this key: choose another prefix",
    "BUSY": "it is busy with another script: try again in a moment",
}
# For these the library removes the error's first word and raises a class of its own.
_CLASSES: Final = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "WRONGPASS",
    "ClusterDownError": "CLUSTERDOWN",
}
# The first word of an error. In an error of a script, it follows the line number (Redis 6.2).
_CODE: Final = re.compile(r"(?:^|@user_script: ?\d+: )-?([A-Z]{3,})\b")
_AGAIN: Final = "try again, nothing is stored twice"


def describe_error(
    address: str, cause: BaseException, session_id: str | None, *, limit: float, write: bool
) -> PersistError:
    """Return the error that explains a failure.

    Args:
        address: the server, without user name and password.
        cause: the exception of the library.
        session_id: the session of the call, if known.
        limit: the timeout of the call, in seconds.
        write: whether the call was a write.
    """
    text = " ".join(str(cause).split())
    kind = type(cause).__name__
    words = _CODE.search(text)
    meaning = _REFUSALS.get(_CLASSES.get(kind) or (words[1] if words else ""))
    if meaning is not None:
        message = f"Redis at {address} refused: {meaning}"
    elif isinstance(cause, TimeoutError) or kind == "TimeoutError":
        again = f"; the write may be stored: {_AGAIN}" if write else ": try again"
        message = f"Redis at {address} did not answer within {limit:g} s{again}"
    elif isinstance(cause, OSError) or kind in {"ConnectionError", "MaxConnectionsError"}:
        again = _AGAIN if write else "try again"
        message = (
            f"Redis at {address} can't be reached ({text or kind}): check that it runs and can be "
            f"reached from here, then {again}"
        )
    else:
        message = f"Redis at {address} failed: {text or kind}"
    return PersistError(message, session_id=session_id)


def describe_loss(address: str, session_id: str) -> PersistError:
    """Return the error for a server that no longer has what it acknowledged."""
    return PersistError(
        f"session '{session_id}': Redis at {address} no longer has what it acknowledged (flushed, evicted, "
        "expired, or failed over to a server without it), nothing was stored: restore the server's data, or "
        "resume the session to continue with what is left",
        session_id=session_id,
    )
