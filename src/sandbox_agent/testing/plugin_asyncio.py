"""The client's fixture for tests that pytest-asyncio runs, loaded if it is installed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sandbox_agent.testing.plugin import SandboxAgentServer, connected_client

if TYPE_CHECKING:
    from sandbox_agent import SandboxAgent

__all__: list[str] = []

_pytest_asyncio: Any = import_module("pytest_asyncio")


@_pytest_asyncio.fixture
async def _sandbox_agent_client_asyncio(  # pyright: ignore[reportUnusedFunction] - requested by name
    sandbox_agent_server: SandboxAgentServer,
) -> AsyncGenerator[SandboxAgent]:
    async with connected_client(sandbox_agent_server) as client:
        yield client
