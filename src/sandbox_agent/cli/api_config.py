"""``sandbox-agent api config``: the MCP servers and skills of folders in a running server's sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import click

from sandbox_agent.cli.remote import Remote, connect_and_print, remote_options

if TYPE_CHECKING:
    from sandbox_agent.client.agent import SandboxAgent

T = TypeVar("T")

_folder = click.argument("folder", metavar="FOLDER")
_name = click.argument("name", metavar="NAME")
_json = click.option("--json", "document", metavar="JSON", help="The configuration.")
_json_file = click.option(
    "--json-file",
    "source",
    type=click.File("rb"),
    metavar="FILE",
    help='A file with the configuration, or "-" for standard input. Use it for secrets.',
)


@click.group()
def config() -> None:
    """Configure MCP servers and skills for the sessions in a folder.

    FOLDER is a path in the sandbox: an absolute one, or one below the home of the server's user.
    """


@config.group()
def mcp() -> None:
    """Configure MCP servers."""


@mcp.command("get")
@_folder
@_name
@remote_options
def get_mcp(*, remote: Remote, folder: str, name: str) -> None:
    """Show an MCP server of a folder."""
    connect_and_print(remote, lambda sdk: sdk.config.get_mcp(folder, name))


@mcp.command("set")
@_folder
@_name
@_json
@_json_file
@remote_options
def set_mcp(*, remote: Remote, folder: str, name: str, document: str | None, source: BinaryIO | None) -> None:
    """Configure an MCP server: --json '{"type": "local", "command": "my-server"}'."""
    from sandbox_agent.wire.configuration import parse_mcp_server

    server = _parse(document, source, parse_mcp_server, '{"type": "local", "command": "my-server"}')
    connect_and_print(remote, lambda sdk: sdk.config.set_mcp(folder, name, server))


@mcp.command("delete")
@_folder
@_name
@remote_options
def delete_mcp(*, remote: Remote, folder: str, name: str) -> None:
    """Remove an MCP server from a folder."""
    connect_and_print(remote, lambda sdk: sdk.config.delete_mcp(folder, name))


@config.group()
def skills() -> None:
    """Configure skills."""


@skills.command("get")
@_folder
@_name
@remote_options
def get_skills(*, remote: Remote, folder: str, name: str) -> None:
    """Show skills of a folder."""

    async def get(sdk: SandboxAgent) -> object:
        return {"sources": await sdk.config.get_skills(folder, name)}

    connect_and_print(remote, get)


@skills.command("set")
@_folder
@_name
@_json
@_json_file
@remote_options
def set_skills(
    *, remote: Remote, folder: str, name: str, document: str | None, source: BinaryIO | None
) -> None:
    """Configure skills: --json '{"sources": [{"type": "github", "source": "owner/repository"}]}'."""
    from sandbox_agent.wire.configuration import parse_skills

    example = '{"sources": [{"type": "github", "source": "owner/repository"}]}'
    skills = _parse(document, source, parse_skills, example)
    connect_and_print(remote, lambda sdk: sdk.config.set_skills(folder, name, skills.sources))


@skills.command("delete")
@_folder
@_name
@remote_options
def delete_skills(*, remote: Remote, folder: str, name: str) -> None:
    """Remove skills from a folder."""
    connect_and_print(remote, lambda sdk: sdk.config.delete_skills(folder, name))


def _parse(document: str | None, source: BinaryIO | None, parse: Callable[[bytes], T], example: str) -> T:
    import msgspec

    if (document is None) == (source is None):
        raise click.UsageError(f"pass either --json '{example}' or --json-file FILE")
    option = "--json" if source is None else "--json-file"
    try:
        return parse((document or "").encode() if source is None else source.read())
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise click.UsageError(f"{option} must be a JSON object such as '{example}' ({error})") from error
