"""Files and folders of this machine that are visible in a sandbox."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.wire.serial import Serializable


@dataclass(frozen=True, slots=True)
class Mount(Serializable):
    """A file or folder of the host that is visible in a sandbox.

    Attributes:
        source: Its path on the host.
        target: Its absolute path in the sandbox.
        writable: Whether the sandbox may write there.
    """

    source: str | os.PathLike[str]
    target: str
    writable: bool = False


def existing_path(path: str | os.PathLike[str], what: str) -> Path:
    """Return the absolute path, without links, of something on this machine.

    Raises:
        SandboxAgentError: It does not exist.
    """
    found = Path(path).expanduser().resolve()
    if not found.exists():
        raise SandboxAgentError(f"the {what} '{path}' does not exist on this machine")
    return found


def checked_mount(mount: Mount) -> Mount:
    """Return a mount with the resolved path of its source.

    Raises:
        SandboxAgentError: The source does not exist, or the target is relative.
    """
    if not PurePosixPath(mount.target).is_absolute():
        raise SandboxAgentError(f"mount target '{mount.target}' is relative: use an absolute path")
    return Mount(existing_path(mount.source, "source of a mount"), mount.target, mount.writable)
