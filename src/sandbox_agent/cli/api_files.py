"""``sandbox-agent api fs``: the files of a running server's sandbox."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import anyio.to_thread
import click

from sandbox_agent.cli.command_options import read_available
from sandbox_agent.cli.output import echo_json, open_output
from sandbox_agent.cli.remote import Remote, connect_and_run, remote_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_agent.client.files import Files

_CHUNK = 1024 * 1024
_path = click.argument("path", metavar="PATH")
_folder = click.argument("path", metavar="FOLDER", default="")
_output = click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="File to write. Default: standard output.",
)


@click.group()
def fs() -> None:
    """Read, write and watch the files of the sandbox.

    A path is absolute, or below the home of the server's user.
    """


@fs.command("list")
@_folder
@remote_options
def list_(*, remote: Remote, path: str) -> None:
    """List a folder. Default: the home of the server's user."""

    async def work(files: Files) -> None:
        echo_json(await files.list(path))

    _run(remote, work)


@fs.command()
@_path
@remote_options
def stat(*, remote: Remote, path: str) -> None:
    """Show the type, size and time of a file or folder."""

    async def work(files: Files) -> None:
        echo_json(await files.stat(path))

    _run(remote, work)


@fs.command()
@_path
@_output
@remote_options
def read(*, remote: Remote, path: str, output: Path | None) -> None:
    """Read a file."""

    async def work(files: Files) -> None:
        async with contextlib.aclosing(files.stream(path)) as parts:
            # The output is made when the file is known to exist.
            first = await anext(parts, b"")
            with open_output(output) as target:
                await anyio.to_thread.run_sync(target.write, first)
                async for part in parts:
                    await anyio.to_thread.run_sync(target.write, part)

    _run(remote, work)


@fs.command()
@_path
@click.argument("source", metavar="[FILE]", type=click.File("rb"), default="-")
@click.option(
    "--if-match", metavar="VERSION", help="Write only if the file has this version; * if it exists."
)
@click.option("--if-absent", is_flag=True, help="Write only if the file does not exist.")
@remote_options
def write(*, remote: Remote, path: str, source: BinaryIO, if_match: str | None, if_absent: bool) -> None:
    """Write a file from FILE of this machine, or from standard input. Show its version."""

    async def content() -> AsyncGenerator[bytes]:
        while part := await read_available(source.fileno(), _CHUNK):
            yield part

    async def work(files: Files) -> None:
        version = await files.write(path, content(), if_match=if_match, if_absent=if_absent)
        echo_json({"version": version})

    _run(remote, work)


@fs.command()
@_path
@remote_options
def mkdir(*, remote: Remote, path: str) -> None:
    """Make a folder, and the folders on the way to it."""

    async def work(files: Files) -> None:
        await files.mkdir(path)

    _run(remote, work)


@fs.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@remote_options
def move(*, remote: Remote, source: str, target: str, overwrite: bool) -> None:
    """Move a file, link or folder."""

    async def work(files: Files) -> None:
        await files.move(source, target, overwrite=overwrite)

    _run(remote, work)


@fs.command()
@_path
@click.option("--recursive", "-r", is_flag=True, help="Delete a folder with what is in it.")
@remote_options
def delete(*, remote: Remote, path: str, recursive: bool) -> None:
    """Delete a file, link or folder."""
    _run(remote, lambda files: files.delete(path, recursive=recursive))


@fs.command("upload-dir")
@click.argument("source", metavar="LOCAL", type=click.Path(exists=True, file_okay=False))
@click.argument("target", metavar="FOLDER")
@click.option("--gitignore", is_flag=True, help="Leave out what Git ignores, and .git.")
@remote_options
def upload_dir(*, remote: Remote, source: str, target: str, gitignore: bool) -> None:
    """Upload what is in a folder of this machine."""
    _run(remote, lambda files: files.upload_dir(source, target, gitignore=gitignore))


@fs.command("download-dir")
@click.argument("source", metavar="FOLDER")
@click.argument("target", metavar="LOCAL", type=click.Path(file_okay=False))
@remote_options
def download_dir(*, remote: Remote, source: str, target: str) -> None:
    """Download what is in a folder. Links that lead out of it are left out, and named."""

    async def work(files: Files) -> None:
        for name in await files.download_dir(source, target):
            click.echo(f"left out: {name}", err=True)

    _run(remote, work)


@fs.command()
@_folder
@click.option("--no-recursive", is_flag=True, help="Do not watch the folders in the folder.")
@remote_options
def watch(*, remote: Remote, path: str, no_recursive: bool) -> None:
    """Write the changes in a folder until it is deleted. The first line says that it is watched."""

    async def work(files: Files) -> None:
        async with files.watch(path, recursive=not no_recursive) as batches:
            echo_json({"type": "ready"})
            async for changes in batches:
                for change in changes:
                    echo_json(change)

    _run(remote, work)


@fs.command()
@click.argument("session", metavar="SESSION")
@_output
@remote_options
def diff(*, remote: Remote, session: str, output: Path | None) -> None:
    """Show what a session of the server has changed in its Git repository."""

    async def work(files: Files) -> None:
        found = await files.diff(session)
        with open_output(output) as target:
            target.write(found.patch)
        if found.truncated:
            click.echo("sandbox-agent: the diff is larger than 32 MiB: its last files are left out", err=True)

    _run(remote, work)


def _run(remote: Remote, work: Callable[[Files], Coroutine[None, None, None]]) -> None:
    connect_and_run(remote, lambda sdk: work(sdk.files))
    sys.stdout.flush()
