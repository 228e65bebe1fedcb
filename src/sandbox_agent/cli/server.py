"""``sandbox-agent server``."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sandbox_agent.agents.environment import ENV_POLICIES, AgentEnvironment, EnvPolicy
from sandbox_agent.agents.user_agents import load_user_agents
from sandbox_agent.cgroups import parse_size
from sandbox_agent.cli.agent_user import check_agent_user, find_agent_user
from sandbox_agent.cli.lifeline import watch_lifeline
from sandbox_agent.cli.logs import LOG_FORMATS, LOG_LEVELS, configure_logging
from sandbox_agent.cli.tokens import read_token, readable_by_others, stays_readable, token_option
from sandbox_agent.cli.user_agents import agent_command_option, agents_options
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.extras import require_otel
from sandbox_agent.persist.open import check_folder, parse_store_url
from sandbox_agent.runtime.limits import Limits
from sandbox_agent.runtime.privacy import hide_url, take_variable
from sandbox_agent.server.config import (
    CANCEL_GRACE,
    DEFAULT_PORT,
    IDLE_TIMEOUT,
    CorsConfig,
    ServerConfig,
    check_binding,
)
from sandbox_agent.server.log_context import current_fields
from sandbox_agent.server.serve import serve
from sandbox_agent.server.store import check_namespace, check_store, default_store, files_of, secrets_of

if TYPE_CHECKING:
    from sandbox_agent.egress.relay import Where

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

STORE_VARIABLE = "SANDBOX_AGENT_STORE"
# Of the collector of --otel. Agents have them only if --agent-env names them.
_OTEL_SECRETS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")


def _read_size(_context: click.Context, _option: click.Parameter, value: str | None) -> int:
    try:
        return 0 if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option("--host", "-H", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port",
    "-p",
    default=DEFAULT_PORT,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port to listen on. 0 selects a free port.",
)
@click.option(
    "--uds",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen on a Unix socket at this path, which only this user can open, instead of a port.",
)
@token_option("Bearer token that clients must send.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Read the token from a file that holds nothing else.",
)
@click.option("--no-token", "-n", is_flag=True, help="Serve without a token, even to other machines.")
@click.option(
    "--store",
    envvar=STORE_VARIABLE,
    show_envvar=True,
    metavar="sqlite:PATH|memory|postgres://…|redis://…",
    help="Where to store sessions. Default: sqlite:server.db in the platform's data folder. memory keeps "
    "them only while the server runs. Pass a URL with a password in the variable.",
)
@click.option(
    "--store-namespace",
    envvar="SANDBOX_AGENT_STORE_NAMESPACE",
    show_envvar=True,
    metavar="NAME",
    help="Namespace for this server's sessions in a shared database. Default: unique to this server.",
)
@click.option(
    "--store-wait",
    default=0.0,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long to wait for a SQLite store while another server uses it, for example one that is ending.",
)
@click.option(
    "--retain-days",
    default=0.0,
    type=click.FloatRange(0),
    metavar="DAYS",
    help="Delete events that are older than this. 0 keeps them forever.",
)
@click.option(
    "--retain-bytes",
    default=0,
    type=click.IntRange(0),
    metavar="BYTES",
    help="Delete the oldest events while the store is larger than this. 0 sets no limit.",
)
@click.option(
    "--feed-memory-bytes",
    default=32 * 1024 * 1024,
    type=click.IntRange(0),
    metavar="BYTES",
    help="Maximum memory for the events of all connections. More is spilled to disk.",
)
@click.option(
    "--max-body-bytes",
    default=64 * 1024 * 1024,
    type=click.IntRange(1),
    metavar="BYTES",
    help="Maximum size of a request body.",
)
@click.option(
    "--max-upload-bytes",
    default=1024 * 1024 * 1024,
    type=click.IntRange(1),
    metavar="BYTES",
    help="Maximum size of an archive of files that is uploaded.",
)
@click.option(
    "--max-head-bytes",
    default=64 * 1024,
    type=click.IntRange(1),
    metavar="BYTES",
    help="Maximum size of a request's head.",
)
@click.option(
    "--max-headers",
    default=100,
    type=click.IntRange(1),
    metavar="NUMBER",
    help="Maximum number of a request's headers.",
)
@click.option(
    "--max-target-bytes",
    default=16 * 1024,
    type=click.IntRange(1),
    metavar="BYTES",
    help="Maximum size of a request's path and query.",
)
@click.option(
    "--max-connections",
    default=0,
    type=click.IntRange(0),
    metavar="NUMBER",
    help="Maximum number of open connections. Default: as many as the limit of open files allows.",
)
@click.option(
    "--head-timeout",
    default=20.0,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="How long a request's head may take.",
)
@click.option(
    "--write-timeout",
    default=60.0,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Close the connection of a client that reads nothing for this long.",
)
@click.option(
    "--request-timeout",
    default=120.0,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Timeout of requests to an agent, except prompts.",
)
@click.option(
    "--cancel-grace",
    default=CANCEL_GRACE,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long an agent may take to end a turn that was cancelled, before it is stopped.",
)
@click.option(
    "--acp-idle-timeout",
    default=IDLE_TIMEOUT,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="End an agent whose clients have been gone for this long and that runs no turn. Only for clients "
    "that name themselves. 0 ends none.",
)
@click.option(
    "--acp-idle-timeout-all",
    is_flag=True,
    help="Apply --acp-idle-timeout also to connections of clients without a name.",
)
@click.option(
    "--session-idle-timeout",
    default=IDLE_TIMEOUT,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Stop the agent of a session that runs no turn and that no client has watched for this long. The "
    "next message restores the session. 0 stops none.",
)
@click.option(
    "--exit-when-idle",
    default=0.0,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="End the server, with exit code 75, when no turn ran and no client was connected for this long. 0 "
    "never does.",
)
@agents_options
@agent_command_option
@click.option(
    "--require-preinstall",
    is_flag=True,
    envvar="SANDBOX_AGENT_REQUIRE_PREINSTALL",
    show_envvar=True,
    help="Refuse agents that are not installed, instead of installing them when they are first used.",
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
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Write the log to this file instead of standard error. It has at most 10 MiB; PATH.1 has what was "
    "before.",
)
@click.option(
    "--otel",
    is_flag=True,
    envvar="SANDBOX_AGENT_OTEL",
    show_envvar=True,
    help="Send a span for each turn and tool call to the OpenTelemetry collector of the OTEL_* variables.",
)
@click.option(
    "--otel-content",
    is_flag=True,
    help="Send prompts, answers, and arguments and results of tools with the spans.",
)
@click.option(
    "--agent-user",
    metavar="USER",
    help="Run agents as this user, who can read neither the server's memory nor its files. Only as root.",
)
@click.option(
    "--agent-env-policy",
    default="default",
    type=click.Choice(ENV_POLICIES),
    help="Variables that agents inherit. default: all but the server's secrets. strict: those that programs "
    "need, and those that are known for the agent.",
)
@click.option(
    "--agent-env",
    multiple=True,
    metavar="NAME",
    help="Another variable that agents inherit, or a pattern such as AWS_*. Can be repeated.",
)
@click.option(
    "--agent-env-deny",
    multiple=True,
    metavar="NAME",
    help="A variable that agents do not inherit, or a pattern such as AWS_*. Can be repeated.",
)
@click.option(
    "--agent-memory",
    callback=_read_size,
    metavar="SIZE",
    help="End an agent whose processes use more memory together, such as 4G. Only on Linux.",
)
@click.option(
    "--agent-pids",
    default=0,
    type=click.IntRange(0),
    metavar="NUMBER",
    help="End an agent that has more processes. 0 sets no limit. Only on Linux.",
)
@click.option(
    "--fs-root",
    multiple=True,
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="The file API reaches this folder and nothing outside of it. Can be repeated. Default: all folders.",
)
@click.option(
    "--egress-proxy",
    metavar="unix:PATH|http://HOST:PORT",
    help="Let agents reach other hosts through this proxy, which sandbox-agent egress-proxy is.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Another name of this machine, under which a server without a token is reached. Can be repeated.",
)
@click.option(
    "--cors-allow-origin",
    "-O",
    multiple=True,
    metavar="ORIGIN",
    help="Allow pages of this origin. Can be repeated.",
)
@click.option(
    "--cors-allow-method", "-M", multiple=True, metavar="METHOD", help="Default: all. Can be repeated."
)
@click.option(
    "--cors-allow-header", "-A", multiple=True, metavar="HEADER", help="Default: all. Can be repeated."
)
@click.option("--cors-allow-credentials", "-C", is_flag=True, help="Allow browsers to send credentials.")
@click.pass_context
def server(
    context: click.Context,
    *,
    host: str,
    port: int,
    uds: Path | None,
    token: str | None,
    token_file: Path | None,
    no_token: bool,
    store: str | None,
    store_namespace: str | None,
    agents: Path | None,
    agent_registry: str | None,
    agent_commands: tuple[str, ...],
    log_level: str,
    log_format: str,
    log_file: Path | None,
    otel: bool,
    otel_content: bool,
    agent_user: str | None,
    agent_env_policy: EnvPolicy,
    agent_env: tuple[str, ...],
    agent_env_deny: tuple[str, ...],
    agent_memory: int,
    agent_pids: int,
    fs_root: tuple[Path, ...],
    egress_proxy: str | None,
    allow_host: tuple[str, ...],
    cors_allow_origin: tuple[str, ...],
    cors_allow_method: tuple[str, ...],
    cors_allow_header: tuple[str, ...],
    cors_allow_credentials: bool,
    **limits: Any,
) -> None:
    """Serve coding agents over HTTP and server-sent events, inside the sandbox.

    SIGTERM or Ctrl-C ends the server and its agents.
    """
    token = read_token(token, token_file, no_token=no_token)
    if uds is None:
        check_binding(host, token=token, no_token=no_token)
    else:
        _check_only_path(context)
    if cors_allow_credentials and "*" in cors_allow_origin:
        raise InvalidRequestError(
            "--cors-allow-credentials with --cors-allow-origin '*' would give the pages of every site the "
            "credentials of this server: name the origins"
        )
    if otel_content and not otel:
        raise InvalidRequestError("--otel-content needs --otel")
    if otel:
        require_otel("--otel")
    token_file = stays_readable(token_file)
    store = _read_store(store)
    secrets = [*([token] if token else []), *secrets_of(store)]
    configure_logging(log_level, log_format, secrets=secrets, file=log_file, fields=current_fields)
    load_user_agents(agents, agent_commands, agent_registry)
    user = None if agent_user is None else find_agent_user(agent_user)
    if user is not None:
        check_agent_user(user, token_file=token_file, store_files=files_of(store))
    config = ServerConfig(
        host=host,
        port=port,
        uds=uds,
        token=token,
        store=store,
        store_namespace=None if store_namespace is None else check_namespace(store_namespace),
        agent_environment=AgentEnvironment(
            policy=agent_env_policy,
            allow=agent_env,
            deny=(*agent_env_deny, *(name for name in _OTEL_SECRETS if otel and name not in agent_env)),
            token=token,
            store_secrets=tuple(secrets_of(store)),
            user=user,
        ),
        agent_limits=_read_limits(agent_memory, agent_pids),
        fs_roots=fs_root,
        egress_proxy=None if egress_proxy is None else _read_proxy(egress_proxy),
        otel=otel,
        otel_content=otel_content,
        allow_hosts=allow_host,
        cors=CorsConfig(cors_allow_origin, cors_allow_method, cors_allow_header, cors_allow_credentials),
        **limits,
    )
    # After its shutdown uvicorn raises the signal again: exit with 0, as the signal was a normal request.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    watch_lifeline()
    if log_level == "info":
        # We log the start and the end ourselves.
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if token_file is not None and readable_by_others(token_file):
        logger.warning("other users can read the token file '%s': run chmod 600 on it", token_file)
    try:
        code = serve(config)
    except OSError as error:
        raise click.ClickException(_why_not(config, error)) from error
    logging.shutdown()
    raise SystemExit(code)


def _check_only_path(context: click.Context) -> None:
    for name in ("host", "port"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise InvalidRequestError(
                f"--uds and --{name} exclude each other: with a socket there is no port"
            )


def _read_proxy(address: str) -> Where:
    from sandbox_agent.egress.relay import parse_where

    return parse_where(address)


def _read_limits(memory: int, processes: int) -> Limits:
    limits = Limits(memory, processes)
    if any(limits) and sys.platform != "linux":
        raise InvalidRequestError(
            "--agent-memory and --agent-pids need Linux: what the processes of an agent use is not known here"
        )
    return limits


def _read_store(store: str | None) -> str:
    take_variable(STORE_VARIABLE)
    if store is None:
        return default_store()
    hide_url(store)
    url = check_store(store)
    check_folder(parse_store_url(url))
    return url


def _why_not(config: ServerConfig, error: OSError) -> str:
    if config.uds is not None:
        why = "another server listens there" if error.errno == errno.EADDRINUSE else error.strerror
        return f"can't listen on the socket '{config.uds}': {why}; pass another --uds"
    return (
        f"can't listen on {config.host}:{config.port}: {error.strerror}; pass another --port, or 0 for any "
        "free port"
    )


def _exit(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
