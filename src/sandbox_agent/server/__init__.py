"""HTTP inside the sandbox. ``create_app`` makes the server an ASGI application for a program of yours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox_agent.server.http.identities import Authenticate, Identity
    from sandbox_agent.server.mounting import create_app

__all__ = ["Authenticate", "Identity", "create_app"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the rooms of the server import this package, too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sandbox_agent.extras import require_server

    require_server("the server")
    if name == "create_app":
        from sandbox_agent.server import mounting as module
    else:
        from sandbox_agent.server.http import identities as module
    return getattr(module, name)
