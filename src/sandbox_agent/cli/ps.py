"""``sandbox-agent ps``: the agents that run behind a server, and what they use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import msgspec

from sandbox_agent.cli.output import echo_document, print_table
from sandbox_agent.cli.remote import Remote, connect_and_run, remote_options

if TYPE_CHECKING:
    from sandbox_agent.client.agent import SandboxAgent
    from sandbox_agent.wire.api import AcpServerInfo

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one connection per line.")
@remote_options
def ps(as_json: bool, remote: Remote) -> None:
    """List the agents that run, with the memory and the processor time of all their processes."""

    async def show(sdk: SandboxAgent) -> None:
        servers = await sdk.list_acp_servers(usage=True)
        if as_json:
            for server in servers:
                echo_document(msgspec.json.encode(server))
        else:
            print_table(
                ["SERVER ID", "AGENT", "PROCESSES", "MEMORY", "CPU", "AGE", "IDLE"], [*map(_row, servers)]
            )

    connect_and_run(remote, show)


def _row(server: AcpServerInfo) -> list[str]:
    usage = server.usage
    age = max(time.time() - server.created_at_ms / 1000, 0)
    return [
        server.server_id,
        server.agent,
        "" if usage is None else str(usage.processes),
        "" if usage is None else format_bytes(usage.memory_bytes),
        "" if usage is None else format_seconds(usage.cpu_ms / 1000),
        format_seconds(age),
        "" if server.idle_ms is None else format_seconds(server.idle_ms / 1000),
    ]


def format_bytes(size: float) -> str:
    """Return a size with a unit of which there is at least one."""
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.0f} {_UNITS[-1]}"


def format_seconds(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, without the units that are 0 at its front."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
