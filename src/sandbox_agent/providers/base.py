"""The provider protocol: what the SDK needs to make, find and end sandboxes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import httpx2

from sandbox_agent.errors import SandboxAgentError

__all__ = ["SandboxProvider", "join_sandbox_id", "split_sandbox_id"]


class SandboxProvider(ABC):
    """Makes sandboxes in which a sandbox-agent server runs.

    Ids here are raw: the provider's own (``127.0.0.1:2468``); users see ``<name>/<raw id>``. A provider
    implements ``create``, ``destroy`` and one of ``get_url`` and ``get_transport``.

    Attributes:
        name: the prefix of its sandbox ids, without a slash.
        default_cwd: where sessions begin when no cwd is given; None for the caller's own.
    """

    name: str
    default_cwd: str | None = None

    @abstractmethod
    async def create(self) -> str:
        """Make a sandbox, start its server and return its raw id."""

    @abstractmethod
    async def destroy(self, sandbox_id: str, /) -> None:
        """End the sandbox and all that is in it; nothing happens where it is gone."""

    async def get_url(self, sandbox_id: str, /) -> str | None:
        """Return the server's base URL, or None where only a transport reaches it."""
        return None

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport | None:
        """Return the transport that reaches the server, or None for the usual one."""
        return None

    async def get_token(self, sandbox_id: str, /) -> str | None:
        """Return the server's token, where the provider knows it."""
        return None

    async def reconnect(self, sandbox_id: str, /) -> None:
        """Wake up or look up a sandbox that was made before.

        Raises:
            SandboxDestroyedError: it no longer exists.
        """
        return

    async def ensure_server(self, sandbox_id: str, /) -> None:
        """See that the server runs in the sandbox; called when it does not answer."""
        return

    async def pause(self, sandbox_id: str, /) -> None:
        """Put the sandbox to sleep; destroyed where the provider can't do that."""
        await self.destroy(sandbox_id)

    async def kill(self, sandbox_id: str, /) -> None:
        """End the sandbox without grace."""
        await self.destroy(sandbox_id)


def join_sandbox_id(provider: SandboxProvider, raw_id: str) -> str:
    """Return the id that users see."""
    return f"{provider.name}/{raw_id}"


def split_sandbox_id(sandbox_id: str, provider: SandboxProvider) -> str:
    """Return the raw id.

    Raises:
        SandboxAgentError: it has no prefix, or another provider's.
    """
    name, slash, raw_id = sandbox_id.partition("/")
    if not (name and slash and raw_id):
        raise SandboxAgentError(
            f"sandbox id '{sandbox_id}' has no provider: it looks like 'local/127.0.0.1:2468'"
        )
    if name != provider.name:
        raise SandboxAgentError(
            f"sandbox '{sandbox_id}' is of provider '{name}', not '{provider.name}': start it with that one"
        )
    return raw_id
