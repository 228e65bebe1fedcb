"""Installs a PyPI package into a virtual environment of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import anyio.to_thread

from sandbox_agent.agents.catalogue import CATALOGUE, PypiPackage
from sandbox_agent.agents.install.command import credential_names, run_command
from sandbox_agent.errors import InstallFailedError
from sandbox_agent.runtime.warden import Warden

# Variables with which packages would come from, or go to, another place.
_PYTHON = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}
_PIP = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar=off")


def read_requirements(agent_id: str) -> str:
    """Return the agent's lockfile, a line with version and hashes per package; empty if there is none."""
    file = files("sandbox_agent.agents.install").joinpath("locks", f"{agent_id}.txt")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


async def install_pypi(
    agent_id: str,
    source: PypiPackage,
    version: str,
    folder: Path,
    *,
    warden: Warden,
    on_progress: Callable[[int, int], None],
    on_line: Callable[[str], None],
) -> list[str]:
    """Install the package with this interpreter and return the command line that speaks ACP.

    With the version of the catalogue, every package has to have one of the hashes that are recorded there.

    Args:
        agent_id: The agent.
        source: Its entry in the catalogue.
        version: The version to install.
        folder: An existing, empty folder.
        warden: Ends pip if this process is killed.
        on_progress: Called with the number of packages that were downloaded, and of all.
        on_line: Called with each line of pip's output.

    Raises:
        InstallFailedError: The environment cannot be made, pip failed, or the package lacks the command.
    """
    known = CATALOGUE.get(agent_id)
    is_locked = known is not None and known.pypi == source and version == source.version
    requirements = read_requirements(agent_id) if is_locked else ""
    total = len(requirements.splitlines())
    collected = 0

    def on_output(line: str) -> None:
        nonlocal collected
        if re.match(r"Collecting ", line) and total:
            collected += 1
            on_progress(min(collected, total), total)
        else:
            on_line(line)

    async def run(what: str, *argv: str) -> None:
        await run_command(
            argv,
            cwd=folder,
            warden=warden,
            on_line=on_output,
            without=credential_names() | _PYTHON,
            what=what,
            agent_id=agent_id,
        )

    commands = folder / "venv" / "bin"
    python = str(commands / "python")
    await run("python -m venv", sys.executable, "-m", "venv", str(folder / "venv"))
    if requirements:
        file = folder / "requirements.txt"
        await anyio.to_thread.run_sync(file.write_text, requirements)
        await run("pip install", python, *_PIP, "--require-hashes", "--requirement", str(file))
        on_progress(total, total)
    else:
        also = [f"{name}=={pin}" for name, pin in source.also.items()]
        await run("pip install", python, *_PIP, f"{source.requirement}=={version}", *also)
    program = commands / source.command[0]
    if not await anyio.to_thread.run_sync(program.is_file):
        raise InstallFailedError(
            f"install failed: {source.name} {version} has no command {program.name}: choose another version",
            agent=agent_id,
        )
    return [str(program), *source.command[1:]]
