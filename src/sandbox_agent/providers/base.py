"""The provider protocol: how the SDK creates, finds and destroys sandboxes."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import anyio
import httpx2

from sandbox_agent.errors import SandboxAgentError

_T = TypeVar("_T")


class SandboxProvider(ABC):
    """Creates sandboxes in which a sandbox-agent server runs.

    The ids in this class are raw ids of the provider (``127.0.0.1:2468``). Users see ``<name>/<raw id>``.
    A provider implements ``create``, ``destroy`` and one of ``get_url`` and ``get_transport``.

    Attributes:
        name: The prefix of its sandbox ids, without a slash.
        default_cwd: The default working directory of sessions, or None for that of the caller, or "/" if the
            URL is not one of this machine.
    """

    name: str
    default_cwd: str | None = None

    @abstractmethod
    async def create(self) -> str:
        """Create a sandbox, start its server and return its raw id."""

    @abstractmethod
    async def destroy(self, sandbox_id: str, /) -> None:
        """Destroy the sandbox and everything in it. Does nothing if it no longer exists."""

    async def get_url(self, sandbox_id: str, /) -> str | None:
        """Return the base URL of the server, or None if it is only reachable through the transport."""
        return None

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport | None:
        """Return the transport to the server, or None for the default."""
        return None

    async def get_token(self, sandbox_id: str, /) -> str | None:
        """Return the token of the server, or None if the provider does not know it."""
        return None

    async def reconnect(self, sandbox_id: str, /) -> None:
        """Find an existing sandbox and wake it up if necessary.

        Raises:
            SandboxDestroyedError: The sandbox no longer exists.
        """
        return

    async def ensure_server(self, sandbox_id: str, /) -> None:
        """Start the server in the sandbox if it does not run. Called when the server does not respond.

        Afterwards the client asks for the URL, the token and the transport again.

        Raises:
            SandboxDestroyedError: The sandbox no longer exists. The client stops waiting.
        """
        return

    async def pause(self, sandbox_id: str, /) -> None:
        """Pause the sandbox. If the provider cannot pause, the sandbox is destroyed."""
        await self.destroy(sandbox_id)

    async def kill(self, sandbox_id: str, /) -> None:
        """Destroy the sandbox without a clean shutdown."""
        await self.destroy(sandbox_id)


def check_options(
    provider: str, options: Mapping[str, Any], kind: type, unsupported: Sequence[str] = ()
) -> None:
    """Check that a provider has all options that it was given, as a misspelled one would weaken a sandbox.

    Args:
        provider: The name of the function that makes it.
        options: The options.
        kind: The ``TypedDict`` with those that there are.
        unsupported: Those of them that this provider lacks.

    Raises:
        TypeError: There is no such option.
    """
    known: frozenset[str] = getattr(kind, "__optional_keys__")  # noqa: B009 - of any TypedDict
    if unknown := set(options) - (known - set(unsupported)):
        raise TypeError(f"{provider}() has no argument {', '.join(sorted(unknown))!r}")


def join_sandbox_id(provider: SandboxProvider, raw_id: str) -> str:
    """Return the id that users see."""
    return f"{provider.name}/{raw_id}"


def split_sandbox_id(sandbox_id: str, provider: SandboxProvider) -> str:
    """Return the raw id.

    Raises:
        SandboxAgentError: The id has no prefix, or that of another provider.
    """
    name, slash, raw_id = sandbox_id.partition("/")
    if not (name and slash and raw_id):
        raise SandboxAgentError(
            f"sandbox id '{sandbox_id}' has no provider: use an id such as 'local/127.0.0.1:2468'"
        )
    if name != provider.name:
        raise SandboxAgentError(
            f"sandbox '{sandbox_id}' belongs to provider '{name}': use that one, not '{provider.name}'"
        )
    return raw_id


async def finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for work and return its result; the work continues when this is cancelled.

    A cancelled scope of anyio cancels each wait in it, so the scope here is shielded, too.
    """
    task = asyncio.ensure_future(work)
    with anyio.CancelScope(shield=True):
        try:
            await asyncio.shield(asyncio.wait({task}))
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise
    return task.result()
