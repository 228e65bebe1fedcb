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


def is_allowed(name: str) -> bool:
    """Return whether a client may call itself that."""
    return name not in RESERVED and len(name) <= MAX_CLIENT_NAME


def check_client_name(name: str | None) -> str:
    """Return the client's name from the value of the header, or UNNAMED if there is none.

    Raises:
        InvalidRequestError: the name is too long or reserved for the server.
    """
    if not name:
        return UNNAMED
    if not is_allowed(name):
        shown = f"'{name}'" if name in RESERVED else f"{len(name)} characters"
        raise InvalidRequestError(
            f"invalid request: {CLIENT_HEADER} must be at most {MAX_CLIENT_NAME} characters and none of the "
            f"server's own names ({', '.join(sorted(RESERVED))}), not {shown}"
        )
    return name
