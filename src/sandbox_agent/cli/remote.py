"""Commands that talk to a running server: their options, and the client that they use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from sandbox_agent.client.server_sessions.api import ServerSessions

__all__ = ["DEFAULT_ENDPOINT", "Remote", "remote_options", "run_remote"]

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:2468"
_INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Remote:
    """A server: its address, and its token where it has one."""

    endpoint: str
    token: str | None


def remote_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a server; it takes them as ``remote``."""

    @click.option(
        "--endpoint",
        "-e",
        default=DEFAULT_ENDPOINT,
        show_default=True,
        metavar="URL",
        help="The server's address.",
    )
    @click.option(
        "--token",
        "-t",
        envvar="SANDBOX_AGENT_TOKEN",
        show_envvar=True,
        metavar="TOKEN",
        help="The server's bearer token.",
    )
    @functools.wraps(command)
    def with_remote(*args: Any, endpoint: str, token: str | None, **options: Any) -> None:
        command(*args, remote=Remote(endpoint, token), **options)

    return with_remote


def run_remote(remote: Remote, work: Callable[[ServerSessions], Coroutine[Any, Any, None]]) -> None:
    """Run work with the server's sessions; Ctrl-C ends it with 130, as shells have it."""
    import asyncio

    from sandbox_agent.cli.logs import configure_logging
    from sandbox_agent.client.agent import SandboxAgent

    async def connected() -> None:
        try:
            sdk = await SandboxAgent.connect(
                base_url=remote.endpoint, token=remote.token, skip_health_check=True
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        async with sdk:
            await work(sdk.sessions)

    configure_logging("warning", "text", secrets=[remote.token] if remote.token else [])
    try:
        asyncio.run(connected())
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
