"""Installed agents on disk: a folder for each installation, and the launcher, which says which one counts.

``$XDG_DATA_HOME/sandbox-agent/agents/<id>/<version>-<random>`` has the files. The launcher is written last,
by a rename, and names the folder. A folder without a launcher was left by an installation that was cut off.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import msgspec

from sandbox_agent.agents.launch import data_dir, launcher_path

# Begins the line of a launcher that has its Installation as JSON.
_MARK = b"# sandbox-agent: "
_HEAD_BYTES = 16 * 1024


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that this program has installed.

    Attributes:
        folder: The absolute path of its files.
        source: "npm", "pypi" or "archive".
        packages: The version of each package. The first one speaks ACP.
        reported: The version that the agent reported in its response to ACP's initialize, or None.
    """

    folder: str
    source: str
    packages: dict[str, str]
    reported: str | None = None

    @property
    def version(self) -> str:
        """The version of the package that speaks ACP."""
        return next(iter(self.packages.values()))

    def is_complete(self) -> bool:
        """Return whether its files are still there."""
        return Path(self.folder).is_dir()


def agent_folder(agent_id: str) -> Path:
    """Return the folder of an agent's installations, which may not exist."""
    return data_dir() / "agents" / agent_id


def read_installation(agent_id: str) -> Installation | None:
    """Return what the agent's launcher says; None if there is none or another program has written it."""
    return read_launcher(launcher_path(agent_id))


def read_launcher(launcher: Path) -> Installation | None:
    """Return the installation that a launcher starts; None if this program has not written it."""
    try:
        with launcher.open("rb") as file:
            lines = file.read(_HEAD_BYTES).splitlines()
    except OSError:
        return None
    record = next((line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)), None)
    try:
        return None if record is None else msgspec.json.decode(record, type=Installation)
    except msgspec.DecodeError:
        return None


def write_launcher(agent_id: str, installation: Installation, argv: list[str], on_path: Path | None) -> None:
    """Replace the agent's launcher by one that starts the command. From then on the agent is installed.

    Args:
        agent_id: The agent.
        installation: What is installed.
        argv: The command and its arguments; the first item is an absolute path.
        on_path: A folder to put first on the agent's PATH, or None.
    """
    hint = f"sandbox-agent: {argv[0]} is gone: run `sandbox-agent agents install {agent_id} --reinstall`"
    lines = [
        "#!/bin/sh",
        f"# Starts {agent_id}. To remove it: sandbox-agent agents uninstall {agent_id}",
        (_MARK + msgspec.json.encode(installation)).decode(),
        f"[ -x {shlex.quote(argv[0])} ] || {{ echo {shlex.quote(hint)} >&2; exit 127; }}",
    ]
    if on_path is not None:
        lines += [f"PATH={shlex.quote(str(on_path))}${{PATH:+:$PATH}}", "export PATH"]
    lines += [f'exec {shlex.join(argv)} "$@"', ""]
    launcher = launcher_path(agent_id)
    launcher.parent.mkdir(parents=True, exist_ok=True)
    # Its name is not that of a launcher until it is complete.
    partial = launcher.with_name(f".{launcher.name}.{os.getpid()}")
    try:
        partial.write_text("\n".join(lines), encoding="utf-8")
        partial.chmod(0o755)
        partial.replace(launcher)
    finally:
        partial.unlink(missing_ok=True)
