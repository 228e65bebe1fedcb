"""Where agents are stored on disk. Same layout as the published server's: both find the same agents."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

_SUFFIX = "-acp"
# An id becomes part of a file name: no separators, no leading dot, no long names.
_AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_agent_id(agent_id: str) -> bool:
    """Return whether the string is a valid agent id."""
    return _AGENT_ID.fullmatch(agent_id) is not None


def data_dir() -> Path:
    """Return ``$XDG_DATA_HOME/sandbox-agent``, or the platform's default. Read on each call."""
    home = os.environ.get("XDG_DATA_HOME", "")
    if Path(home).is_absolute():
        return Path(home) / "sandbox-agent"
    return platformdirs.user_data_path("sandbox-agent", appauthor=False)


def bin_dir() -> Path:
    """Return the folder of the agents' own binaries."""
    return data_dir() / "bin"


def native_path(name: str) -> Path:
    """Return the path of an agent's own binary, which may not exist."""
    return bin_dir() / name


def launcher_path(agent_id: str) -> Path:
    """Return the path of an agent's launcher, an executable that speaks ACP. It may not exist."""
    return bin_dir() / "agent_processes" / f"{agent_id}{_SUFFIX}"


def launcher_ids() -> list[str]:
    """Return the sorted ids of all launchers in the data folder."""
    folder = bin_dir() / "agent_processes"
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    except OSError:
        return []
    ids = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(agent_id for agent_id in ids if is_agent_id(agent_id))
