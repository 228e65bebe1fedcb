"""``sandbox-agent tail``."""

from __future__ import annotations

import click

from sandbox_agent.cli.remote import Remote, remote_options, run_remote

__all__ = ["tail"]


@click.command()
@click.argument("session_id", metavar="SESSION")
@click.option(
    "--offset",
    "-o",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="SEQUENCE",
    help="Begin behind this event.",
)
@click.option("--no-follow", is_flag=True, help="End where the history ends.")
@click.option("--json", "as_json", is_flag=True, help="Write the events, one a line.")
@remote_options
def tail(*, remote: Remote, session_id: str, offset: int, no_follow: bool, as_json: bool) -> None:
    """Show what is said in a SESSION of a server, then what is being said.

    It connects again by itself when the connection or the server is lost, and ends with the session.
    """
    from sandbox_agent.cli.tailing import tail_session

    run_remote(
        remote,
        lambda api: tail_session(api, session_id, offset, follow=not no_follow, as_json=as_json),
    )
