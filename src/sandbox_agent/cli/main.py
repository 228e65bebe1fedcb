"""The ``sandbox-agent`` command."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from sandbox_agent.errors import TABLE, SandboxAgentError

__all__ = ["cli", "main"]

# Where each command lives; it is imported when it is run or helped with.
COMMANDS: Final = {
    "demo": "sandbox_agent.cli.demo:demo",
    "run": "sandbox_agent.cli.run:run",
    "server": "sandbox_agent.cli.server:server",
    "sessions": "sandbox_agent.cli.sessions:sessions",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "--version", "-V", package_name="sandbox-agent-py")
def cli() -> None:
    """Run coding agents in sandboxes, and never lose an event."""


def main() -> None:
    """Run the command; an error of ours is one line on stderr and an exit code of the table's."""
    try:
        cli(prog_name="sandbox-agent")
    except SandboxAgentError as error:
        click.echo(f"sandbox-agent: {error}", err=True)
        sys.exit(next((row.exit_code for row in TABLE if isinstance(error, row.error)), 1))


if __name__ == "__main__":
    main()
