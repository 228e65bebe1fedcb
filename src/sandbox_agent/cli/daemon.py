"""``sandbox-agent daemon``: a server in the background."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sandbox_agent.cli.daemon_state import DaemonFiles, DaemonState, running
from sandbox_agent.cli.output import echo_json, printable
from sandbox_agent.cli.tokens import read_token, token_option
from sandbox_agent.errors import ConflictError, SandboxAgentError, TokenInvalidError
from sandbox_agent.extras import require_server
from sandbox_agent.runtime.process_identity import KnownProcess

if TYPE_CHECKING:
    from sandbox_agent.cli.daemon_start import Launch

# How long a server may take to end by itself; it needs at most 8 seconds.
STOP_SECONDS: Final = 10.0
# How long the kernel may take to end a process that was killed.
KILL_SECONDS: Final = 5.0
# How long a server that runs may take to answer: another command may have started it and was killed.
HEALTHY_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.1
# As an init script: 3 is "not running", 4 is "unknown".
NOT_RUNNING: Final = 3
NO_ANSWER: Final = 4
_PACKAGE: Final = "sandbox-agent-py"
# What the units start.
_PROGRAM: Final = "/opt/sandbox-agent/bin/sandbox-agent server"


def _address(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--port",
            "-p",
            default=2468,
            type=click.IntRange(1, 65535),
            metavar="PORT",
            help="Port of the server.",
        ),
        click.option("--host", "-H", default="127.0.0.1", metavar="ADDRESS", help="Address of the server."),
    ):
        command = option(command)
    return command


_token = token_option("Bearer token of the server.")
_no_token = click.option("--no-token", "-n", is_flag=True, help="The server has no token.")


@click.group()
def daemon() -> None:
    """Run a server in the background, for this user.

    There is one for each address. It survives the end of the terminal. Commands that are given the same
    host and port mean the same server.
    """


@daemon.command()
@_address
@click.option(
    "--upgrade", is_flag=True, help="Restart a running server of another version, with the same options."
)
@_token
@_no_token
@click.argument("server_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVER_OPTIONS...]")
def start(
    *,
    host: str,
    port: int,
    upgrade: bool,
    token: str | None,
    no_token: bool,
    server_options: tuple[str, ...],
) -> None:
    """Start a server in the background, unless it runs, and return when it answers.

    What follows -- are options of "sandbox-agent server": daemon start -- --store memory
    """
    require_server("sandbox-agent daemon start")
    from sandbox_agent.cli.daemon_start import Launch, is_answered, launch, read_options

    token = read_token(token, None, no_token=no_token)
    own = version(_PACKAGE)
    wanted = Launch(host, port, token, no_token, str(Path.cwd()), read_options(server_options, os.environ))
    files = DaemonFiles(host, port)
    with files.locked():
        with running(state := files.read()) as process:
            if state is not None and process is not None:
                if not upgrade or state.version == own:
                    _accept(state, wanted, own)
                    click.echo(f"the server already runs at {wanted.url}, pid {state.pid}, log {files.log}")
                    return
                wanted = wanted.after(state)
                click.echo(f"the server at {wanted.url} is upgraded from {state.version} to {own}")
                _end(process)
                files.remove()
        if is_answered(host, port):
            raise ConflictError(
                f"another server answers at {wanted.url}, which this command has not started: end it, or "
                "pass another --port"
            )
        state = launch(wanted, files, own)
        _wait_healthy(wanted)
    click.echo(f"the server runs at {wanted.url}, pid {state.pid}, log {files.log}")


def _accept(state: DaemonState, wanted: Launch, own: str) -> None:
    """Check that the server that runs is what is wanted.

    Raises:
        ConflictError: it has other options.
        SandboxAgentError: it does not answer.
    """
    _wait_healthy(wanted)
    if wanted.options.arguments and state.options != wanted.options.arguments:
        raise ConflictError(
            f"the server at {wanted.url} runs with other options ({' '.join(state.options) or 'none'}): run "
            "'sandbox-agent daemon stop' first"
        )
    if state.version != own:
        click.echo(f"it has the version {state.version}, not {own}: --upgrade restarts it", err=True)


def _wait_healthy(wanted: Launch) -> None:
    from sandbox_agent.cli.daemon_start import REFUSED, why_unhealthy

    deadline = time.monotonic() + HEALTHY_SECONDS
    while (why := why_unhealthy(wanted.host, wanted.port, wanted.token)) is not None:
        if why == REFUSED:
            raise TokenInvalidError(
                f"the server at {wanted.url} has another token: pass that one, or run "
                "'sandbox-agent daemon stop' first"
            )
        if time.monotonic() > deadline:
            raise SandboxAgentError(f"the server at {wanted.url} runs, but {why}")
        time.sleep(_PAUSE_SECONDS)


@daemon.command()
@_address
@_token
@_no_token
def stop(*, host: str, port: int, token: str | None, no_token: bool) -> None:
    """End the server and its agents. Its sessions stay in its store."""
    del token, no_token  # options of the published command; a signal needs none
    files = DaemonFiles(host, port)
    with files.locked(), running(state := files.read()) as process:
        if state is None or process is None:
            click.echo("the server is not running")
        else:
            click.echo("the server has ended" if _end(process) else "the server did not end and was killed")
        files.remove()


def _end(process: KnownProcess) -> bool:
    """End a server; return whether it has ended by itself."""
    process.signal(signal.SIGTERM)
    if process.wait(STOP_SECONDS):
        return True
    process.signal(signal.SIGKILL)
    if not process.wait(KILL_SECONDS):
        raise SandboxAgentError("the server can't be killed: it waits for the system, such as a hanging disk")
    return False


@daemon.command()
@_address
@_token
@_no_token
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def status(*, host: str, port: int, token: str | None, no_token: bool, as_json: bool) -> None:
    """Show whether the server runs, its version and its store.

    The exit code is 0 if it answers, 3 if it does not run, and 4 if it runs and does not answer.
    """
    from sandbox_agent.cli.daemon_start import is_answered, url_of, why_unhealthy

    files = DaemonFiles(host, port)
    document: dict[str, object] = {"status": "stopped", "url": url_of(host, port)}
    code = NOT_RUNNING
    with running(state := files.read()) as process:
        if state is not None and process is not None:
            why = why_unhealthy(host, port, None if no_token else token)
            code = 0 if why is None else NO_ANSWER
            document |= {
                "status": "running" if why is None else "unhealthy",
                **({} if why is None else {"reason": why}),
                "pid": state.pid,
                "version": state.version,
                "uptimeSeconds": max(0, int(time.time() - state.started_at_ms / 1000)),
                "store": state.store,
            }
        elif state is not None:
            document["reason"] = "it has ended by itself: its log may say why"
        elif is_answered(host, port):
            document["reason"] = "another server answers there, which 'daemon start' has not started"
    document["log"] = str(files.log)
    if as_json:
        echo_json(document)
    else:
        for name, value in document.items():
            shown = _duration(value) if isinstance(value, int) and name == "uptimeSeconds" else str(value)
            click.echo(f"{name.removesuffix('Seconds'):<8} {printable(shown)}")
    sys.exit(code)


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


@daemon.command()
@click.option("--user", "for_user", is_flag=True, help="Print the unit of a service of this user.")
def unit(*, for_user: bool) -> None:
    """Print a unit for systemd, which starts this installation of the server.

    sandbox-agent daemon unit > /etc/systemd/system/sandbox-agent.service
    """
    from importlib.resources import files

    name = "user.service" if for_user else "sandbox-agent.service"
    text = (files("sandbox_agent.cli") / "systemd" / name).read_text(encoding="utf-8")
    # In a unit, a percent sign and a dollar sign are special, also between quotes.
    python = sys.executable.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    click.echo(text.replace(_PROGRAM, f'"{python}" -P -m sandbox_agent server'), nl=False)
