"""``sandbox-agent api``."""

from __future__ import annotations

import click

from sandbox_agent.cli.api_sessions import sessions

__all__ = ["api"]


@click.group()
def api() -> None:
    """Call the HTTP API of a running server.

    Answers are JSON on standard output, streams one JSON object a line.
    """


api.add_command(sessions)
