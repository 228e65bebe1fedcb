"""``sandbox-agent egress-proxy``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from sandbox_agent.cli.lifeline import watch_lifeline
from sandbox_agent.cli.logs import LOG_FORMATS, LOG_LEVELS, configure_logging
from sandbox_agent.egress.allow_list import AllowList
from sandbox_agent.egress.dial import Dialer, read_upstreams
from sandbox_agent.egress.proxy import Proxy
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.runtime.unix_socket import listen_on_path, unlink_socket

logger: logging.Logger = logging.getLogger("sandbox_agent.egress")

_PORT = 3128
_BACKLOG = 512
# Each connection has two, and names are resolved with more.
_FILES = 4096


@click.command("egress-proxy")
@click.option("--host", "-H", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port",
    "-p",
    default=_PORT,
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Port to listen on.",
)
@click.option(
    "--uds",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen on a Unix socket at this path, which only this user can open, instead of a port.",
)
@click.option(
    "--fd",
    type=click.IntRange(3),
    metavar="NUMBER",
    help="Use this descriptor, a socket that listens already, instead of a port.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="HOST",
    help="A host that the sandbox may reach, such as api.anthropic.com, *.npmjs.org or github.com:22. Can be "
    "repeated.",
)
@click.option(
    "--exit-when-alone",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="End when no server of a sandbox has been connected for so long. Default: never.",
)
@click.option(
    "--log-level",
    default="info",
    type=click.Choice(LOG_LEVELS),
    help="Minimum level of the log on standard error.",
)
@click.option(
    "--log-format",
    default="text",
    type=click.Choice(LOG_FORMATS),
    help="Plain text, or one JSON object per line.",
)
@click.pass_context
def egress_proxy(
    context: click.Context,
    *,
    host: str,
    port: int,
    uds: Path | None,
    fd: int | None,
    allow_host: tuple[str, ...],
    exit_when_alone: float | None,
    log_level: str,
    log_format: str,
) -> None:
    """Run the proxy of a sandbox, outside of it.

    It reaches the allowed hosts and no others. If HTTPS_PROXY and HTTP_PROXY are set here, it reaches them
    through these proxies. SIGTERM or Ctrl-C ends it.
    """
    given = [context.get_parameter_source(name) for name in ("host", "port")]
    if [uds is not None, fd is not None, any(each is not ParameterSource.DEFAULT for each in given)].count(
        True
    ) > 1:
        raise InvalidRequestError("--uds, --fd and an address exclude each other: use one of them")
    dialer = Dialer(AllowList(allow_host), read_upstreams())
    configure_logging(log_level, log_format)
    watch_lifeline()
    _allow_files()
    try:
        listener = _listen(host, port, uds, fd)
    except OSError as error:
        where = f"the socket '{uds}'" if uds is not None else f"{host}:{port}" if fd is None else f"--fd {fd}"
        raise click.ClickException(f"can't listen on {where}: {error.strerror}; use another one") from error
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(Proxy(dialer), listener, exit_when_alone))
    if uds is not None:
        unlink_socket(uds)
    logging.shutdown()
    os._exit(0)  # threads may still wait for a name server


def _listen(host: str, port: int, uds: Path | None, fd: int | None) -> socket.socket:
    if fd is not None:
        listener = socket.socket(fileno=fd)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, "it does not listen")
        listener.set_inheritable(False)
        return listener
    if uds is not None:
        return listen_on_path(uds, _BACKLOG)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


async def _serve(proxy: Proxy, listener: socket.socket, exit_when_alone: float | None) -> None:
    task = asyncio.current_task()
    assert task is not None

    async def end_when_alone(seconds: float) -> None:
        await proxy.wait_alone(seconds)
        logger.info("no server of a sandbox has been connected for %g s: the egress proxy ends", seconds)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    is_unix = listener.family == socket.AF_UNIX
    start = asyncio.start_unix_server if is_unix else asyncio.start_server
    logger.info("the egress proxy listens on %s", listener.getsockname() if not is_unix else "a Unix socket")
    async with asyncio.TaskGroup() as tasks:
        if exit_when_alone is not None:
            tasks.create_task(end_when_alone(exit_when_alone))
        await proxy.serve(lambda accept: start(accept, sock=listener, backlog=_BACKLOG))


def _allow_files() -> None:
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
