"""``sandbox-agent mirror``."""

from __future__ import annotations

import click

from sandbox_agent.cli.remote import Remote, remote_options, run_remote

__all__ = ["mirror"]


@click.command()
@click.argument("session_id", metavar="SESSION")
@click.option(
    "--into",
    required=True,
    envvar="SANDBOX_AGENT_MIRROR",
    show_envvar=True,
    metavar="SINK",
    help="Where to: postgres://…, redis://…, or sqlite:PATH.",
)
@click.option("--once", is_flag=True, help="End when all that there is now has been copied.")
@remote_options
def mirror(*, remote: Remote, session_id: str, into: str, once: bool) -> None:
    """Copy the events of a SESSION of a server into a database, each once.

    It goes on from what is there, connects again by itself when the connection or the server is lost, and
    ends with the session. Stop it at any time; the next one goes on.
    """
    from sandbox_agent.cli.mirroring import mirror_session, open_sink

    sink = open_sink(into)
    run_remote(remote, lambda api: mirror_session(api, session_id, sink, once=once))
