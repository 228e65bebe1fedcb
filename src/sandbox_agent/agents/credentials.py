"""Checks whether an agent has credentials on this machine. Their values are read but never stored."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from sandbox_agent.agents.catalogue import CATALOGUE, CredentialFile

# Most credential files are small, but a user's ~/.claude.json can be several megabytes.
_MAX_BYTES = 32 * 1024 * 1024


def credentials_available(agent_id: str) -> bool:
    """Return whether the environment or the user's home folder contains credentials for the agent.

    True for agents that are not in the catalogue, or whose credential locations are not known.
    """
    agent = CATALOGUE.get(agent_id)
    if agent is None or not (agent.credential_env or agent.credential_files):
        return True
    if any(os.environ.get(name) for name in agent.credential_env):
        return True
    try:
        home = Path.home()
    except RuntimeError:  # no HOME and no entry in the user database
        return False
    return any(_holds_credentials(home, file) for file in agent.credential_files)


def _holds_credentials(home: Path, file: CredentialFile) -> bool:
    path = home / file.path
    try:
        size = path.stat().st_size
        if not file.members:
            return size > 0
        content: Any = json.loads(path.read_bytes()) if size <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    members = cast("dict[str, Any]", content)
    return any(members.get(name) for name in file.members)
