"""Files and standard input as content blocks of a prompt."""

from __future__ import annotations

import base64
import mimetypes
import os
import select
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.acp import (
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceContents,
    ResourceLink,
    TextContent,
)
from sandbox_agent.wire.api import AgentCapabilities

# The formats that models read.
_IMAGES: Final = ("image/gif", "image/jpeg", "image/png", "image/webp")
# A larger text is a link where the agent can read the file: it reads what it needs.
_EMBEDDED_BYTES: Final = 256 * 1024
# More than this is never sent: in base64 it is still below what a server accepts as one request.
_MOST_BYTES: Final = 32 * 1024 * 1024
# Seconds without input after which the user is informed that standard input is read.
_QUIET_SECONDS: Final = 2.0


def file_block(
    path: Path, agent: str, capabilities: AgentCapabilities, path_in_sandbox: Callable[[Path], str | None]
) -> ContentBlock:
    """Return a file as a content block of the best kind that the agent accepts.

    Images are image blocks, texts are embedded. What the agent does not accept, and other files, are links.

    Args:
        path: the file, on this machine.
        agent: the agent's id, for errors.
        capabilities: what the agent accepts.
        path_in_sandbox: returns where the agent finds the file, or None if it can't read it.

    Raises:
        InvalidRequestError: the file can't be read, or the agent accepts no such file and can't read it.
    """
    kind = mimetypes.guess_type(path.name)[0]
    there = path_in_sandbox(path)
    try:
        size = path.stat().st_size
        if kind in _IMAGES and capabilities.images and size <= _MOST_BYTES:
            return ImageContent(data=base64.b64encode(path.read_bytes()).decode(), mime_type=kind)
        if capabilities.file_attachments and size <= (_EMBEDDED_BYTES if there is not None else _MOST_BYTES):
            text = _text(path.read_bytes())
            if text is not None:
                uri = _uri(there or str(path.absolute()))
                contents = ResourceContents(uri=uri, text=text, mime_type=kind or "text/plain")
                return EmbeddedResource(resource=contents)
        if there is not None:
            return ResourceLink(name=path.name, uri=_uri(there), mime_type=kind, size=size)
    except OSError as error:
        raise InvalidRequestError(f"the file '{path}' can't be read: {error.strerror}") from error
    raise InvalidRequestError(
        f"the file '{path}' can't be sent: the agent '{agent}' accepts no such file, and its sandbox does "
        "not have it: put it into the working directory of --sandbox local, jail, docker or podman"
    )


def _text(content: bytes) -> str | None:
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _uri(path: str) -> str:
    return f"file://{quote(path)}"


def stdin_block() -> ContentBlock | None:
    """Return what standard input has, if it is a pipe or a file that is not empty, as a text."""
    text = _read_stdin().rstrip()
    return TextContent(text=f"<stdin>\n{text}\n</stdin>") if text else None


def _read_stdin() -> str:
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # standard input is closed
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return ""
    if not select.select([sys.stdin], [], [], _QUIET_SECONDS)[0]:
        click.echo("reading standard input to its end; add </dev/null if it has nothing", err=True)
    return sys.stdin.buffer.read().decode(errors="replace")
