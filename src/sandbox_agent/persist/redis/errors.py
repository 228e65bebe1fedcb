"""What Redis' and its library's errors mean, in one line for people."""

from __future__ import annotations

import re
from typing import Final

from sandbox_agent.errors import PersistError

__all__ = ["describe", "lost"]

_REFUSALS: Final = {
    "OOM": "it has reached its maxmemory and takes no writes: give it memory, or delete sessions",
    "READONLY": "it is a replica that takes no writes: wait for the failover, or name the primary",
    "LOADING": "it has just started and reads its data: try again in a moment",
    "MISCONF": "it can't write its disk and takes no writes: look at its log",
    "NOREPLICAS": "too few replicas are connected (min-replicas-to-write): bring them back",
    "NOAUTH": "it wants a password: put it into the URL",
    "WRONGPASS": "it knows no such name and password: correct the URL",
    "NOPERM": "the user may not run what is needed: see the page on Redis for the commands and keys",
    "CLUSTERDOWN": "the cluster has lost some of its slots: wait for it, or repair it",
    "WRONGTYPE": "another program's value is under the key: choose another prefix",
    "BUSY": "it is busy with somebody's script: try again in a moment",
}
# The library takes the first word away and says the same by the exception's class.
_CLASSES: Final = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "WRONGPASS",
    "ClusterDownError": "CLUSTERDOWN",
}
# The first word; a script's error has it behind the place in the script (Redis 6.2, in so many words).
_CODE: Final = re.compile(r"(?:^|@user_script: ?\d+: )-?([A-Z]{3,})\b")
_AGAIN: Final = "try again, nothing is stored twice"


def describe(
    address: str, cause: BaseException, session_id: str | None, *, limit: float, write: bool
) -> PersistError:
    """Return what a failure means.

    Args:
        address: the server, without name and password.
        cause: what was raised.
        session_id: the session that it was about, where known.
        limit: how long the call was allowed to take, in seconds.
        write: whether something was being written.
    """
    text = " ".join(str(cause).split())
    kind = type(cause).__name__
    words = _CODE.search(text)
    meaning = _REFUSALS.get(_CLASSES.get(kind) or (words[1] if words else ""))
    if meaning is not None:
        message = f"Redis at {address} refused: {meaning}"
    elif isinstance(cause, TimeoutError) or kind == "TimeoutError":
        again = f"; what was being written may be stored: {_AGAIN}" if write else ": try again"
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


def lost(address: str, session_id: str) -> PersistError:
    """Return what is told where a server no longer has what it acknowledged."""
    return PersistError(
        f"session '{session_id}': Redis at {address} no longer has what it acknowledged (flushed, evicted, "
        "expired, or failed over to a server without it), nothing was stored: restore the server's data, or "
        "resume the session to go on with what is left",
        session_id=session_id,
    )
