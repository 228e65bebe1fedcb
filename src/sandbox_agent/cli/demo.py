"""``sandbox-agent demo``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["demo"]


@click.command()
@click.option(
    "--agent",
    "-a",
    default="mock",
    show_default=True,
    metavar="ID",
    help="The built-in agent, or one that you have: claude, codex, ...",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the stores and the agent's files go; default: a new temporary folder.",
)
def demo(*, agent: str, folder: Path | None) -> None:
    """Show the main job: a session outlives its killed server.

    Starts a server, has an agent work, kills the server with SIGKILL in the middle of a turn, starts it
    again, and goes on with the session. Then it compares what the server sent, what the store holds and
    what a listener saw; the exit code is 1 if they differ.
    """
    import asyncio

    from sandbox_agent.cli.demo_story import tell_story

    raise SystemExit(asyncio.run(tell_story(agent.strip() or "mock", folder)))
