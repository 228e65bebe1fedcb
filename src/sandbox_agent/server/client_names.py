"""The names of clients: the header that carries them, and those that the server reserves for itself."""

from __future__ import annotations

from typing import Final

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import InvalidRequestError

CLIENT_HEADER: Final = "sandbox-agent-client"
CLIENT_HEADER_BYTES: Final = CLIENT_HEADER.encode()
MAX_CLIENT_NAME: Final = 256

# The names under which the server itself sends envelopes, as session logs show them.
POLICY: Final = "policy"
EXPIRY: Final = "expiry"
SESSION: Final = "session"
CANCELLATION: Final = "cancel"
RESERVED: Final = frozenset({POLICY, EXPIRY, SESSION, CANCELLATION})


def check_client_name(name: str | None) -> str:
    """Return the client's name from the value of the header, or UNNAMED if there is none.

    Raises:
        InvalidRequestError: the name is too long, not printable, or reserved for the server.
    """
    if not name:
        return UNNAMED
    if name in RESERVED or len(name) > MAX_CLIENT_NAME or not name.isprintable():
        shown = repr(name) if len(name) <= MAX_CLIENT_NAME else f"{len(name)} characters"
        raise InvalidRequestError(
            f"invalid request: {CLIENT_HEADER} must be at most {MAX_CLIENT_NAME} printable characters and "
            f"none of the server's own names ({', '.join(sorted(RESERVED))}), not {shown}"
        )
    return name
