"""``sandbox-agent chat``."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import click

from sandbox_agent.cli.launch import Launch, launch_options
from sandbox_agent.cli.stores import chat_store, store_option
from sandbox_agent.extras import require_extra

_EPILOG = """\b
Examples:
  sandbox-agent chat --agent claude
  sandbox-agent chat --continue
  sandbox-agent chat --agent codex --sandbox docker --permission-mode accept_edits
"""


@click.command(epilog=_EPILOG)
@launch_options
@store_option(
    "--store",
    envvar="SANDBOX_AGENT_STORE",
    show_envvar=True,
    must_exist=False,
    help="Where to store the sessions: the path of an SQLite file, or a store URL. Default: a file of this "
    "user, which 'sandbox-agent sessions browse' shows, too.",
)
def chat(*, launch: Launch) -> None:
    """Talk with agents on the terminal.

    Starts a server, on this machine unless --sandbox names a service, and ends it afterwards. Enter sends a
    message; Alt-Enter, or a backslash at the end of the line, begins another line. /help lists the commands:
    they switch the model and the mode, open other sessions, and attach files. If a tool call needs
    permission, you are asked. Ctrl-C cancels the running turn; Ctrl-D ends the chat.
    """
    require_extra("sandbox-agent chat", "cli", "prompt_toolkit", "rich")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("chat needs a terminal: without one use 'sandbox-agent run PROMPT --continue'")
    start_chat(launch)


def start_chat(launch: Launch) -> None:
    """Run a chat to its end."""
    from sandbox_agent.cli.chat.app import Chat

    if launch.store is None:
        launch = replace(launch, store=chat_store())
    raise SystemExit(asyncio.run(Chat(launch.prepared()).run()))
