"""The ``sandbox-agent`` command."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from sandbox_agent.errors import TABLE, SandboxAgentError
from sandbox_agent.extras import MissingExtraError, require_server

if TYPE_CHECKING:
    from types import ModuleType

    from click.shell_completion import CompletionItem


class Entry(NamedTuple):
    """A command: its module and variable, and its line in the list of commands."""

    where: str
    help: str


# A command's module is imported when the command runs or shows its help. The list of commands imports none.
COMMANDS: Final = {
    "agents": Entry("sandbox_agent.cli.agents:agents", "Install and list the agents of this machine."),
    "api": Entry("sandbox_agent.cli.api:api", "Call the HTTP API of a running server."),
    "chat": Entry("sandbox_agent.cli.chat.command:chat", "Talk with agents on the terminal."),
    "credentials": Entry(
        "sandbox_agent.cli.credentials:credentials", "Show the credentials that agents find on this machine."
    ),
    "daemon": Entry("sandbox_agent.cli.daemon:daemon", "Run a server in the background."),
    "demo": Entry("sandbox_agent.cli.demo:demo", "Show that a session survives a killed server."),
    "doctor": Entry("sandbox_agent.cli.doctor:doctor", "Check what servers and agents need, or a server."),
    "egress-proxy": Entry(
        "sandbox_agent.cli.egress_proxy:egress_proxy",
        "Run the proxy that limits which hosts a sandbox reaches.",
    ),
    "exec": Entry("sandbox_agent.cli.exec:exec_command", "Run a command in the sandbox of a server."),
    "image": Entry("sandbox_agent.cli.image:image", "Build the image of sandboxes in containers."),
    "install-agent": Entry("sandbox_agent.cli.agents:install_agent", "Install an agent."),
    "mirror": Entry("sandbox_agent.cli.mirror:mirror", "Copy a session of a running server to a database."),
    "ps": Entry("sandbox_agent.cli.ps:ps", "List the agents that run behind a server, and what they use."),
    "run": Entry("sandbox_agent.cli.run:run", "Run one prompt and stream the agent's output."),
    "sandboxes": Entry("sandbox_agent.cli.sandboxes:sandboxes", "List and destroy sandboxes in containers."),
    "search": Entry("sandbox_agent.cli.search:search", "Search all sessions of a running server."),
    "server": Entry("sandbox_agent.cli.server:server", "Serve coding agents over HTTP, inside the sandbox."),
    "sessions": Entry("sandbox_agent.cli.sessions:sessions", "Browse, export and move stored sessions."),
    "tail": Entry("sandbox_agent.cli.tail:tail", "Follow a session of a running server."),
}

# Commands whose process has the token of a server, and agents below it.
_WITH_AGENTS: Final = ("chat", "daemon", "demo", "run", "server")


# How a closed pipe, a full device, a quota and a broken device end a write.
_OUTPUT_ERRORS: Final = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _OutputError(Exception):
    """The output can't be written. It is no OSError, because click exits silently for a closed pipe."""


class _LazyGroup(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            raise _output_error(error) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if cmd_name == "server":
            require_server("sandbox-agent server")
        module, _, name = entry.where.partition(":")
        command: click.Command = getattr(_import(module), name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if not incomplete.startswith("-"):
            return [
                CompletionItem(name, help=entry.help)
                for name, entry in COMMANDS.items()
                if name.startswith(incomplete)
            ]
        return super().shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


def _import(name: str) -> ModuleType:
    """Import a command's module without the garbage collector, which never looks among its objects later.

    Imports make many objects and no garbage. Looking for it took a sixth of the time to start a server.
    """
    if name in sys.modules or not gc.isenabled():
        return importlib.import_module(name)
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(None, "--version", "-V", package_name="sandbox-agent-py")
def cli() -> None:
    """Run coding agents in sandboxes, and never lose an event."""


def main() -> None:
    """Run the command. An error of this package becomes one line on stderr and an exit code of ``TABLE``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Agents write what a terminal's encoding lacks, and halves of surrogate pairs.
            stream.reconfigure(errors="replace")
    if sys.argv[1:2] and sys.argv[1] in _WITH_AGENTS:
        from sandbox_agent.runtime.privacy import hide_memory

        hide_memory()
    try:
        cli(prog_name="sandbox-agent")
    except SandboxAgentError as error:
        from sandbox_agent.cli.output import name_options

        click.echo(f"sandbox-agent: {name_options(' '.join(str(error).split()))}", err=True)
        sys.exit(next((row.exit_code for row in TABLE if isinstance(error, row.error)), 1))
    except MissingExtraError as error:
        click.echo(f"sandbox-agent: {error}", err=True)
        sys.exit(1)
    except (OSError, _OutputError) as error:
        if isinstance(error, OSError):
            error = _output_error(error)
        if not isinstance(error, _OutputError):
            raise
        # What is still in the buffer of stdout would fail again at the exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"sandbox-agent: the output can't be written: {error}", err=True)
        sys.exit(1)


def _output_error(error: OSError) -> Exception:
    """Return the error for output that can't be written; any other error is returned unchanged."""
    is_output = error.errno in _OUTPUT_ERRORS and error.filename is None
    return _OutputError(error.strerror) if is_output else error


if __name__ == "__main__":
    main()
