"""Starts a server in the background, and checks that it answers."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

import click

from sandbox_agent.cli.daemon_state import DaemonFiles, DaemonState
from sandbox_agent.cli.output import printable
from sandbox_agent.cli.tokens import TOKEN_VARIABLE
from sandbox_agent.errors import ConflictError, InvalidRequestError, SandboxAgentError
from sandbox_agent.providers.server_process import written_pipe
from sandbox_agent.runtime.notify import VARIABLE as NOTIFY_VARIABLE
from sandbox_agent.runtime.process_identity import identity

# How long a server may take to open its store and to listen.
START_SECONDS: Final = 60.0
# How long a server that was not started may take to end.
_END_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.1
# The path of a Unix socket may have about 100 bytes.
_LONG_FOLDER: Final = 70
REFUSED: Final = "the token is not that of the server"
# Options of the server that this command sets itself.
_OWN_OPTIONS: Final = ("host", "port", "uds", "token", "no_token", "log_file")
# Where a server is reached that listens on all addresses.
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound to it


@dataclass(frozen=True)
class ServerOptions:
    """Options of ``sandbox-agent server``.

    Attributes:
        arguments: as they were given.
        variables: variables of options, without secrets.
        store: the store, without a password.
        store_is_secret: it was given in a variable, because it has a password.
    """

    arguments: list[str]
    variables: dict[str, str]
    store: str
    store_is_secret: bool


def read_options(arguments: Sequence[str], environ: Mapping[str, str]) -> ServerOptions:
    """Return the options of a server.

    Raises:
        InvalidRequestError: one of them is not for a server in the background.
        click.UsageError: the server has no such option.
    """
    from sandbox_agent.cli.server import STORE_VARIABLE, server
    from sandbox_agent.persist.open import parse_store_url
    from sandbox_agent.server.store import check_store, default_store, secrets_of

    context = click.Context(server, info_name="sandbox-agent server")
    given, rest, _ = server.make_parser(context).parse_args(list(arguments))
    if rest:
        raise click.UsageError(f"'{rest[0]}' is not an option of sandbox-agent server", context)
    for name in _OWN_OPTIONS:
        if name in given:
            raise InvalidRequestError(
                f"--{name.replace('_', '-')} can't stand after --: address and token are options of daemon "
                "start, and the log is in the data folder"
            )
    store = given.get("store") or environ.get(STORE_VARIABLE) or default_store()
    is_secret = len(secrets_of(store)) > 1
    if is_secret and "store" in given:
        raise InvalidRequestError(
            f"--store has a password, which other users could see: pass the URL in {STORE_VARIABLE}"
        )
    names = [name for each in server.params if isinstance(name := each.envvar, str)]
    secret = {TOKEN_VARIABLE, *([STORE_VARIABLE] if is_secret else [])}
    return ServerOptions(
        list(arguments),
        {name: environ[name] for name in names if name in environ and name not in secret},
        parse_store_url(check_store(store)).shown,
        is_secret,
    )


@dataclass(frozen=True)
class Launch:
    """A server that is to be started."""

    host: str
    port: int
    token: str | None
    no_token: bool
    cwd: str
    options: ServerOptions

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        return url_of(self.host, self.port)

    def after(self, state: DaemonState) -> Launch:
        """Return the launch that replaces a server that runs, with the options of that.

        Raises:
            ConflictError: its sessions would be lost.
            InvalidRequestError: a secret is missing.
        """
        if state.store == "memory":
            raise ConflictError(
                f"the server at {self.url} keeps its sessions in memory: a restart would lose them. Run "
                "'sandbox-agent daemon stop' first if that is intended"
            )
        if state.has_token and self.token is None:
            raise InvalidRequestError(
                f"the server at {self.url} has a token, which is stored nowhere: pass it in {TOKEN_VARIABLE}"
            )
        arguments = self.options.arguments or state.options
        options = read_options(arguments, {**state.variables, **os.environ})
        if options.store != state.store:
            hint = "pass its URL in SANDBOX_AGENT_STORE" if state.store_is_secret else "pass that one"
            raise InvalidRequestError(
                f"the sessions of the server at {self.url} are in '{state.store}', not in '{options.store}': "
                f"{hint}"
            )
        no_token = self.no_token or (state.no_token and self.token is None)
        return replace(self, options=options, cwd=state.cwd, no_token=no_token)


def launch(wanted: Launch, files: DaemonFiles, version: str) -> DaemonState:
    """Start a server, and return when it listens. It has its log, and no terminal.

    Raises:
        SandboxAgentError: it did not start. The end of its log was written to standard error.
    """
    command = [sys.executable, "-P", "-m", "sandbox_agent", "server"]
    command += ["--host", wanted.host, "--port", str(wanted.port), "--log-file", str(files.log)]
    command += wanted.options.arguments
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-agent-", dir=_short_folder()) as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        ready.bind(f"{folder}/notify")
        ready.settimeout(_PAUSE_SECONDS)
        log = files.open_log()
        start = os.fstat(log).st_size
        descriptors: list[int] = []
        if wanted.token is not None:
            descriptors = [written_pipe(wanted.token)]
            command += ["--token-file", f"/dev/fd/{descriptors[0]}"]
        elif wanted.no_token:
            command += ["--no-token"]
        environ = {**os.environ, **wanted.options.variables, NOTIFY_VARIABLE: f"{folder}/notify"}
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=wanted.cwd,
                pass_fds=descriptors,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxAgentError(f"the server can't be started in '{wanted.cwd}': {error}") from error
        finally:
            for descriptor in (log, *descriptors):
                os.close(descriptor)
        state = DaemonState(
            pid=process.pid,
            identity=identity(process.pid) or "",
            version=version,
            started_at_ms=time.time_ns() // 1_000_000,
            cwd=wanted.cwd,
            options=wanted.options.arguments,
            variables=wanted.options.variables,
            store=wanted.options.store,
            store_is_secret=wanted.options.store_is_secret,
            has_token=wanted.token is not None,
            no_token=wanted.no_token,
        )
        try:
            files.write(state)
            _wait_ready(process, ready)
        except BaseException:
            _end(process)
            files.remove()
            click.echo(printable(files.log_tail(start)), err=True)
            raise
    return state


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= _LONG_FOLDER else "/tmp"  # noqa: S108 - a private folder is made in it


def _wait_ready(process: subprocess.Popen[bytes], ready: socket.socket) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if b"READY=1" in ready.recv(4096):
                return
        except TimeoutError:
            pass
        if (code := process.poll()) is not None:
            how = f"exited with code {code}" if code >= 0 else f"was ended by signal {-code}"
            raise SandboxAgentError(f"the server {how} at its start: the end of its log says why")
        if time.monotonic() > deadline:
            raise SandboxAgentError(
                f"the server did not listen within {START_SECONDS:g} s: the end of its log may say why"
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server that was not started."""
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def url_of(host: str, port: int) -> str:
    """Return the URL at which a server is reached from this machine."""
    host = _ANY.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def why_unhealthy(host: str, port: int, token: str | None = None) -> str | None:
    """Return why the server of an address does not answer its health check; None if it does."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection = http.client.HTTPConnection(_ANY.get(host, host), port, timeout=CHECK_SECONDS)
    try:
        connection.request("GET", "/v1/health", headers=headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{url_of(host, port)}/v1/health can't be reached: {error or type(error).__name__}"
    finally:
        connection.close()
    if status == HTTPStatus.OK:
        return None
    if status == HTTPStatus.UNAUTHORIZED:
        return REFUSED
    return f"the health check was answered with the status {status}"


def is_answered(host: str, port: int) -> bool:
    """Return whether anything listens at an address."""
    try:
        socket.create_connection((_ANY.get(host, host), port), CHECK_SECONDS).close()
    except OSError:
        return False
    return True
