"""What commands that use a running server share: their options, and the connection."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sandbox_agent.cli.output import echo_json, name_options
from sandbox_agent.cli.tokens import token_option

if TYPE_CHECKING:
    from sandbox_agent.client.agent import SandboxAgent
    from sandbox_agent.client.server_sessions.api import ServerSessions


@dataclass(frozen=True)
class Remote:
    """The address of a server, and its token or None."""

    endpoint: str
    token: str | None


def remote_options(command: Callable[..., None], *token_names: str) -> Callable[..., None]:
    """Add the options of a server to a command. It receives them as ``remote``.

    Args:
        command: the command.
        *token_names: the names of the option for the token; without any, ``--token`` and ``-t``.
    """

    @click.option(
        "--endpoint", "-e", default="http://127.0.0.1:2468", metavar="URL", help="Address of the server."
    )
    @token_option("Bearer token of the server.", *token_names)
    @click.option("--no-token", "-n", is_flag=True, help="Send no token, even if the variable has one.")
    @functools.wraps(command)
    def with_remote(*args: Any, endpoint: str, token: str | None, no_token: bool, **options: Any) -> None:
        command(*args, remote=Remote(endpoint, None if no_token else token), **options)

    return with_remote


def run_remote(remote: Remote, work: Callable[[ServerSessions], Coroutine[Any, Any, None]]) -> None:
    """Run the work with the server's sessions. Ctrl-C ends it with exit code 130."""
    connect_and_run(remote, lambda sdk: work(sdk.sessions))


def connect_and_print(remote: Remote, call: Callable[[SandboxAgent], Coroutine[Any, Any, object]]) -> None:
    """Write what a call of a client returns as JSON; nothing if it returns None."""

    async def work(sdk: SandboxAgent) -> None:
        if (answer := await call(sdk)) is not None:
            echo_json(answer)

    connect_and_run(remote, work)


def connect_and_run(remote: Remote, work: Callable[[SandboxAgent], Coroutine[Any, Any, None]]) -> None:
    """Run the work with a client of the server. Ctrl-C ends it with exit code 130."""
    import asyncio

    from sandbox_agent.cli.logs import configure_logging
    from sandbox_agent.client.agent import SandboxAgent

    async def connect_and_work() -> None:
        try:
            sdk = await SandboxAgent.connect(
                base_url=remote.endpoint, token=remote.token, skip_health_check=True
            )
        except ValueError as error:
            raise click.UsageError(name_options(str(error))) from error
        async with sdk:
            await work(sdk)

    configure_logging("warning", "text", secrets=[remote.token] if remote.token else [])
    try:
        asyncio.run(connect_and_work())
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
