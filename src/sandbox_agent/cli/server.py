"""``sandbox-agent server``."""

from __future__ import annotations

import logging
import signal
from types import FrameType

import click

from sandbox_agent.cli.logs import LOG_FORMATS, LOG_LEVELS, configure_logging
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.server.config import DEFAULT_PORT, CorsConfig, ServerConfig, check_binding
from sandbox_agent.server.serve import serve
from sandbox_agent.server.store import check_namespace, check_store, default_store, secrets_of

__all__ = ["server"]


@click.command()
@click.option(
    "--host", "-H", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on."
)
@click.option(
    "--port",
    "-p",
    default=DEFAULT_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--token",
    "-t",
    envvar="SANDBOX_AGENT_TOKEN",
    show_envvar=True,
    metavar="TOKEN",
    help="Bearer token that clients must send.",
)
@click.option("--no-token", "-n", is_flag=True, help="Serve without a token, other machines too.")
@click.option(
    "--store",
    envvar="SANDBOX_AGENT_STORE",
    show_envvar=True,
    metavar="sqlite:PATH|memory|postgres://…|redis://…",
    help="Where sessions are kept; default: sqlite:server.db under the platform's folder for data. "
    "memory keeps them only while the server runs. One with a password belongs in the variable.",
)
@click.option(
    "--store-namespace",
    envvar="SANDBOX_AGENT_STORE_NAMESPACE",
    show_envvar=True,
    metavar="NAME",
    help="Whose sessions these are in a database that servers share; default: this server's own.",
)
@click.option(
    "--retain-days",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="DAYS",
    help="Erase events that are older; 0 keeps them for ever.",
)
@click.option(
    "--retain-bytes",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="BYTES",
    help="Erase the oldest events while the store is larger; 0 sets no bound.",
)
@click.option(
    "--feed-memory-bytes",
    default=32 * 1024 * 1024,
    show_default=True,
    type=click.IntRange(0),
    metavar="BYTES",
    help="Bound on events in memory, over all connections; more is spilled to the store.",
)
@click.option(
    "--max-body-bytes",
    default=64 * 1024 * 1024,
    show_default=True,
    type=click.IntRange(1),
    metavar="BYTES",
    help="Bound on a request's body.",
)
@click.option(
    "--request-timeout",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Seconds an agent has to answer anything but a prompt.",
)
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(LOG_LEVELS),
    help="What is logged, at least; to standard error.",
)
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(LOG_FORMATS),
    help="Lines for people, or one JSON object a line.",
)
@click.option(
    "--cors-allow-origin",
    "-O",
    multiple=True,
    metavar="ORIGIN",
    help="Let this origin's pages in; may be repeated.",
)
@click.option(
    "--cors-allow-method", "-M", multiple=True, metavar="METHOD", help="Default: all; may be repeated."
)
@click.option(
    "--cors-allow-header", "-A", multiple=True, metavar="HEADER", help="Default: all; may be repeated."
)
@click.option("--cors-allow-credentials", "-C", is_flag=True, help="Let browsers send credentials.")
def server(
    *,
    host: str,
    port: int,
    token: str | None,
    no_token: bool,
    store: str | None,
    store_namespace: str | None,
    retain_days: float,
    retain_bytes: int,
    feed_memory_bytes: int,
    max_body_bytes: int,
    request_timeout: float,
    log_level: str,
    log_format: str,
    cors_allow_origin: tuple[str, ...],
    cors_allow_method: tuple[str, ...],
    cors_allow_header: tuple[str, ...],
    cors_allow_credentials: bool,
) -> None:
    """Serve coding agents over HTTP and server-sent events, inside the sandbox.

    Ends its agents and itself on SIGTERM or Ctrl-C.
    """
    if no_token:
        token = None
    elif token is not None and not token.strip():
        raise InvalidRequestError("the token is empty: give --token one, or --no-token if none is meant")
    check_binding(host, token=token, no_token=no_token)
    store = default_store() if store is None else check_store(store)
    config = ServerConfig(
        host=host,
        port=port,
        token=token,
        store=store,
        store_namespace=None if store_namespace is None else check_namespace(store_namespace),
        retain_days=retain_days,
        retain_bytes=retain_bytes,
        feed_memory_bytes=feed_memory_bytes,
        max_body_bytes=max_body_bytes,
        request_timeout=request_timeout,
        cors=CorsConfig(cors_allow_origin, cors_allow_method, cors_allow_header, cors_allow_credentials),
    )
    # uvicorn shuts down at a signal and then passes it on to these: what was asked for is no error.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    configure_logging(log_level, log_format, secrets=[*([token] if token else []), *secrets_of(store)])
    if log_level == "info":
        # Its own start and end are told by ours.
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        code = serve(config)
    except OSError as error:
        raise click.ClickException(
            f"can't listen on {host}:{port}: {error.strerror}; give --port another one, or 0 for any"
        ) from error
    logging.shutdown()
    raise SystemExit(code)


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
