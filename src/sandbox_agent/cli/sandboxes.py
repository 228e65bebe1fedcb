"""``sandbox-agent sandboxes``: the sandboxes in containers of this machine and at services."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from sandbox_agent.cli.output import echo_document, print_table, printable
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.engine.endpoints import EngineName, find_endpoint
from sandbox_agent.providers.engine.factories import DockerProvider, PodmanProvider
from sandbox_agent.providers.engine.provider import EngineProvider
from sandbox_agent.providers.remote import RemoteProvider
from sandbox_agent.providers.services import SERVICES, open_service

_KINDS: dict[EngineName, type[EngineProvider]] = {"docker": DockerProvider, "podman": PodmanProvider}


@click.group()
def sandboxes() -> None:
    """List, destroy and inspect sandboxes. An id is such as docker/sandbox-agent-1a2b3c or e2b/i1a2b3c.

    Sandboxes at a service need its key in a variable such as E2B_API_KEY.
    """


@sandboxes.command(name="list")
@click.option(
    "--provider",
    "--engine",
    type=click.Choice([*_KINDS, *SERVICES]),
    help="Only of this provider. Default: the engines of containers that are found.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one sandbox per line.")
def list_command(provider: str | None, as_json: bool) -> None:
    """List the sandboxes, also those that are paused or stopped."""
    names: Sequence[str] = _found() if provider is None else [provider]
    if not names:
        raise SandboxAgentError(
            "neither docker nor podman was found: pass --provider to see where it was looked for, or the "
            "name of a service"
        )
    rows = [row for name in names for row in asyncio.run(_list(name))]
    if as_json:
        for row in rows:
            echo_document(
                msgspec.json.encode(dict(zip(("id", "image", "state", "status"), row, strict=True)))
            )
    else:
        print_table(["ID", "IMAGE", "STATE", "STATUS"], rows)


def _found() -> Sequence[EngineName]:
    found: list[EngineName] = []
    for name in _KINDS:
        try:
            find_endpoint(name)
        except SandboxAgentError:
            continue
        found.append(name)
    return found


async def _list(name: str) -> list[list[str]]:
    provider = _provider(name)
    if isinstance(provider, RemoteProvider):
        found = await provider.list_sandboxes()
        return [[f"{name}/{each.id}", each.image, each.state, each.created] for each in found]
    items = await provider.list_sandboxes()
    return [
        [f"{name}/{item['Names'][0].lstrip('/')}", item["Image"], item["State"], item["Status"]]
        for item in items
    ]


@sandboxes.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def destroy(ids: tuple[str, ...]) -> None:
    """Destroy sandboxes with all their files, but for their workspace."""

    async def run() -> None:
        for sandbox_id in ids:
            provider, raw_id = _open(sandbox_id)
            await provider.destroy(raw_id)

    asyncio.run(run())


@sandboxes.command()
@click.argument("sandbox_id", metavar="ID")
@click.option("--lines", "-n", type=click.IntRange(1), metavar="NUMBER", help="Only the last lines.")
def logs(sandbox_id: str, lines: int | None) -> None:
    """Print the output of a sandbox's server."""
    provider, raw_id = _open(sandbox_id)
    text = asyncio.run(provider.logs(raw_id, lines))
    click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


@sandboxes.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("sandbox_id", metavar="ID")
@click.argument("command", nargs=-1, required=True, metavar="COMMAND...")
def exec_command(sandbox_id: str, command: tuple[str, ...]) -> None:
    """Run a command in a sandbox. Its exit code is that of this command."""
    provider, raw_id = _open(sandbox_id)
    code, output = asyncio.run(provider.execute(raw_id, command))
    click.echo(output, nl=False)
    raise SystemExit(code)


def _open(sandbox_id: str) -> tuple[EngineProvider | RemoteProvider[Any], str]:
    name, slash, raw_id = sandbox_id.partition("/")
    if name not in (*_KINDS, *SERVICES) or not slash or not raw_id:
        raise click.UsageError(
            f"'{sandbox_id}' is not the id of a sandbox in a container or at a service: use one of "
            "'sandboxes list'"
        )
    return _provider(name), raw_id


def _provider(name: str) -> EngineProvider | RemoteProvider[Any]:
    kind = next((kind for engine, kind in _KINDS.items() if engine == name), None)
    return open_service(name) if kind is None else kind()
