"""The event loop that the SDK works in, and the error of a call outside of it."""

from __future__ import annotations

import asyncio
import sys

from sandbox_agent.errors import SandboxAgentError

__all__ = ["name_library", "running_loop"]

NO_LOOP = (
    "sandbox_agent needs a running asyncio event loop, and there is none here: call it in asyncio.run(...), "
    "or use sandbox_agent.sync, which needs none. trio and other event loops are not supported"
)


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop.

    Raises:
        SandboxAgentError: no event loop runs, or it is not one of asyncio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise SandboxAgentError(NO_LOOP) from None


def name_library() -> None:
    """Let anyio find the loop in callbacks, too. If sniffio is installed, it finds only the loop of tasks."""
    sniffio = sys.modules.get("sniffio")  # anyio has imported it
    if sniffio is not None:
        sniffio.current_async_library_cvar.set("asyncio")
