"""``sandbox-agent api processes``: the processes of a running server's sandbox."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from sandbox_agent.cli.command_options import COMMAND_SETTINGS, command_options, read_available
from sandbox_agent.cli.output import echo_json
from sandbox_agent.cli.remote import Remote, connect_and_print, connect_and_run, remote_options

if TYPE_CHECKING:
    from sandbox_agent.client.agent import SandboxAgent
    from sandbox_agent.wire.processes import (
        ProcessLogEntry,
        ProcessOwner,
        ProcessRestartRequest,
        ProcessStream,
        RestartMode,
    )

# The most that a request brings by default is 64 KiB.
_INPUT_BYTES = 32 * 1024
_process = click.argument("process_id", metavar="PROCESS")
_count = click.IntRange(0)
_seconds = click.FloatRange(0, min_open=True)


def _wait_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--wait",
        type=click.FloatRange(0),
        metavar="SECONDS",
        help=f"How long to wait until it has ended. Default: {default}.",
    )


@click.group()
def processes() -> None:
    """Run commands in the sandbox, and read their output."""


@processes.command(context_settings=COMMAND_SETTINGS)
@click.option("--tty", is_flag=True, help="Run the command in a terminal.")
@click.option("--cols", type=click.IntRange(1, 65_535), metavar="NUMBER", help="Width of the terminal.")
@click.option("--rows", type=click.IntRange(1, 65_535), metavar="NUMBER", help="Height of the terminal.")
@click.option("--interactive", is_flag=True, help="Mark it as a process whose input a person types.")
@click.option(
    "--restart",
    type=click.Choice(["never", "on_failure", "always"]),
    help="When to start it again after it has ended. Default: never.",
)
@click.option("--max-restarts", type=_count, metavar="NUMBER", help="Restart it so often. Default: no limit.")
@remote_options
@command_options
def create(
    *,
    remote: Remote,
    command: tuple[str, ...],
    restart: RestartMode | None,
    max_restarts: int | None,
    **options: Any,
) -> None:
    """Start a process, which continues after this command has ended."""
    policy = _restart(restart, max_restarts)
    connect_and_print(
        remote, lambda sdk: sdk.processes.create(command[0], command[1:], restart=policy, **options)
    )


def _restart(mode: RestartMode | None, max_restarts: int | None) -> ProcessRestartRequest | None:
    from sandbox_agent.wire.processes import ProcessRestartRequest

    if mode is None:
        if max_restarts is not None:
            raise click.UsageError("--max-restarts needs --restart on_failure or --restart always")
        return None
    return ProcessRestartRequest(policy=mode, max_restarts=max_restarts)


@processes.command(context_settings=COMMAND_SETTINGS)
@click.option(
    "--timeout", type=_seconds, metavar="SECONDS", help="Kill the command after this time. Default: 30."
)
@click.option(
    "--max-output-bytes", type=_count, metavar="BYTES", help="Show only so much of each of its outputs."
)
@remote_options
@command_options
def run(*, remote: Remote, command: tuple[str, ...], **options: Any) -> None:
    """Run a command to its end, and show its exit code and output.

    The exit code of the command is in the JSON document. "sandbox-agent exec" has it as its own.
    """
    connect_and_print(remote, lambda sdk: sdk.processes.run(command[0], command[1:], **options))


@processes.command("list")
@click.option(
    "--owner", type=click.Choice(["user", "desktop", "system"]), help="Only processes of this owner."
)
@remote_options
def list_(*, remote: Remote, owner: ProcessOwner | None) -> None:
    """List processes, oldest first; the latest that have ended, too."""

    async def list_all(sdk: SandboxAgent) -> object:
        return {"processes": await sdk.processes.list(owner=owner)}

    connect_and_print(remote, list_all)


@processes.command()
@_process
@remote_options
def get(*, remote: Remote, process_id: str) -> None:
    """Show a process."""
    connect_and_print(remote, lambda sdk: sdk.processes.get(process_id))


@processes.command()
@_process
@_wait_option(2)
@remote_options
def stop(*, remote: Remote, process_id: str, wait: float | None) -> None:
    """Send SIGTERM to a process and to all that it has started."""
    connect_and_print(remote, lambda sdk: sdk.processes.stop(process_id, wait=wait))


@processes.command()
@_process
@_wait_option(1)
@remote_options
def kill(*, remote: Remote, process_id: str, wait: float | None) -> None:
    """Send SIGKILL to a process and to all that it has started."""
    connect_and_print(remote, lambda sdk: sdk.processes.kill(process_id, wait=wait))


@processes.command()
@_process
@remote_options
def delete(*, remote: Remote, process_id: str) -> None:
    """Delete a process that has ended, and its output."""
    connect_and_print(remote, lambda sdk: sdk.processes.delete(process_id))


@processes.command("input")
@_process
@click.argument("source", metavar="[FILE]", type=click.File("rb"), default="-")
@click.option("--data", metavar="TEXT", help="The input, instead of a file.")
@click.option("--eof", is_flag=True, help="End the input of the process afterwards.")
@remote_options
def input_(*, remote: Remote, process_id: str, source: BinaryIO, data: str | None, eof: bool) -> None:
    """Send input to a process: FILE of this machine, or standard input."""

    async def parts() -> AsyncGenerator[bytes]:
        if data is not None:
            content = data.encode(errors="surrogateescape")
            for start in range(0, len(content), _INPUT_BYTES):
                yield content[start : start + _INPUT_BYTES]
            return
        while part := await read_available(source.fileno(), _INPUT_BYTES):
            yield part

    async def send(sdk: SandboxAgent) -> object:
        written = 0
        async with aclosing(parts()) as content:
            async for part in content:
                written += await sdk.processes.send_input(process_id, part)
        if eof:
            written += await sdk.processes.send_input(process_id, b"", eof=True)
        return {"bytesWritten": written}

    connect_and_print(remote, send)


@processes.command()
@_process
@click.option(
    "--follow", "-f", is_flag=True, help="Write output, one entry per line, until the process ends."
)
@click.option("--tail", type=_count, metavar="NUMBER", help="Only so many of the last entries.")
@click.option(
    "--since", type=_count, metavar="SEQUENCE", help="Only entries after the one with this sequence."
)
@click.option(
    "--stream",
    type=click.Choice(["combined", "stdout", "stderr", "pty"]),
    default="combined",
    help="Which output.",
)
@click.option(
    "--allow-gaps",
    is_flag=True,
    help="With --follow: skip output that the server has dropped. Without it, that is an error.",
)
@click.option(
    "--raw", is_flag=True, help="Write the output itself, unchanged, to standard output and standard error."
)
@remote_options
def logs(
    *,
    remote: Remote,
    process_id: str,
    follow: bool,
    tail: int | None,
    since: int | None,
    stream: ProcessStream,
    allow_gaps: bool,
    raw: bool,
) -> None:
    """Show the output of a process that is kept."""
    write = _write_raw if raw else echo_json

    async def work(sdk: SandboxAgent) -> None:
        if follow:
            entries = sdk.processes.follow_logs(
                process_id, stream=stream, since=since, tail=tail, allow_gaps=allow_gaps
            )
            async with aclosing(entries):
                async for entry in entries:
                    write(entry)
            return
        answer = await sdk.processes.logs(process_id, stream=stream, since=since, tail=tail)
        if not raw:
            echo_json(answer)
            return
        if answer.gap is not None:
            entries_range = f"{answer.gap.from_} to {answer.gap.to}"
            click.echo(f"sandbox-agent: the entries {entries_range} were dropped: the log was full", err=True)
        for entry in answer.entries:
            write(entry)

    connect_and_run(remote, work)


def _write_raw(entry: ProcessLogEntry) -> None:
    target = sys.stderr if entry.stream == "stderr" else sys.stdout
    target.buffer.write(entry.data)
    target.buffer.flush()


@processes.group()
def config() -> None:
    """Show and change the limits for processes."""


@config.command("get")
@remote_options
def get_config(*, remote: Remote) -> None:
    """Show the limits."""
    connect_and_print(remote, lambda sdk: sdk.processes.get_config())


_limit = click.IntRange(1)


@config.command("set")
@click.option("--max-concurrent-processes", type=_limit, metavar="NUMBER", help="How many may run at a time.")
@click.option(
    "--default-run-timeout-ms", type=_limit, metavar="MS", help="Timeout of a command of run that names none."
)
@click.option("--max-run-timeout-ms", type=_limit, metavar="MS", help="Longest timeout of a command of run.")
@click.option(
    "--max-output-bytes", type=_limit, metavar="BYTES", help="How much of each output run returns at most."
)
@click.option(
    "--max-log-bytes-per-process", type=_limit, metavar="BYTES", help="How much output is kept of a process."
)
@click.option(
    "--max-input-bytes-per-request", type=_limit, metavar="BYTES", help="How much input a request may bring."
)
@remote_options
def set_config(*, remote: Remote, **limits: int | None) -> None:
    """Change limits until the server ends, and show all. Those that are not named stay."""
    changes = {name: value for name, value in limits.items() if value is not None}
    if not changes:
        raise click.UsageError("name a limit to change, such as --max-concurrent-processes 128")

    async def change(sdk: SandboxAgent) -> object:
        import msgspec

        limits = msgspec.structs.replace(await sdk.processes.get_config(), **changes)
        return await sdk.processes.set_config(limits)

    connect_and_print(remote, change)
