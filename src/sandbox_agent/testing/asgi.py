"""The server, or an application that has it mounted, without a network: for tests in one process."""

from __future__ import annotations

from sandbox_agent.client.asgi import ASGITransport

__all__ = ["ASGITransport"]
