"""Installs npm packages into a folder."""

from __future__ import annotations

import json
import platform
import sys
import sysconfig
from collections.abc import Callable, Collection
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import anyio.to_thread

from sandbox_agent.agents.catalogue import CATALOGUE, NpmPackages
from sandbox_agent.agents.install.command import credential_names, path_with, run_command
from sandbox_agent.agents.install.node import Node
from sandbox_agent.errors import InstallFailedError
from sandbox_agent.runtime.warden import Warden

# A registry that cannot be reached is an error within seconds, not within minutes.
_FETCH = ("--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000")
# "http" logs each download: the only progress that npm has without a terminal.
_LOG = ("--no-audit", "--no-fund", "--loglevel=http")
# A user's npmrc may have others, with which the lockfile would not fit, or the programs would be left out.
_TREE = (
    "--global=false",
    "--include=optional",
    "--engine-strict=false",
    "--package-lock=true",
    "--legacy-peer-deps=false",
    "--install-strategy=hoisted",
)
_OPTIONS = ("--ignore-scripts", *_TREE, *_LOG, *_FETCH)
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


async def install_npm(
    agent_id: str,
    source: NpmPackages,
    packages: dict[str, str],
    folder: Path,
    *,
    node: Node,
    warden: Warden,
    on_progress: Callable[[int, int], None],
    on_line: Callable[[str], None],
) -> list[str]:
    """Install the packages and return the command line that speaks ACP. ``folder/bin`` is for its PATH.

    With the versions of the catalogue, on a platform of its lockfile, every package has to have the hash that
    is recorded there, but for the lockfile's missing packages. Otherwise npm chooses the versions of
    dependencies.

    Args:
        agent_id: The agent.
        source: Its entry in the catalogue.
        packages: The versions to install.
        folder: An existing, empty folder.
        node: The Node.js to use, now and for the agent.
        warden: Ends npm if this process is killed.
        on_progress: Called with the number of packages that were downloaded, and of all.
        on_line: Called with each line of npm's output.

    Raises:
        InstallFailedError: npm failed, or the packages do not have the command.
    """
    known = CATALOGUE.get(agent_id)
    is_locked = known is not None and known.npm is not None and packages == known.npm.packages
    lock = read_lock(agent_id) if is_locked else None
    await anyio.to_thread.run_sync(_prepare, folder, source, packages, lock, node)
    total = 0 if lock is None else _count(lock)
    # npm ci installs nothing that its lockfile lacks.
    command = "install" if lock is None or lock.missing else "ci"
    downloaded: set[str] = set()

    def on_output(line: str) -> None:
        if line.startswith("npm http fetch GET 200 ") and ".tgz" in line:
            downloaded.add(line.split(" ")[5])
            if total:
                on_progress(min(len(downloaded), total), total)
        elif not line.startswith("npm http "):
            on_line(line)

    async def run(*arguments: str, without: Collection[str]) -> None:
        await run_command(
            [*node.npm, *arguments],
            cwd=folder,
            warden=warden,
            on_line=on_output,
            env={"PATH": path_with(folder / "bin")},
            without=without,
            what=f"npm {arguments[0]}",
            agent_id=agent_id,
        )

    await run(command, *_OPTIONS, without=())
    if source.scripts:
        await run("rebuild", "--ignore-scripts=false", *source.scripts, without=credential_names())
    if total:
        on_progress(total, total)
    return await anyio.to_thread.run_sync(_find_command, agent_id, source, folder, node)


class Lock(NamedTuple):
    """A lockfile, for one platform.

    Attributes:
        packages: The lockfile's ``packages``, with a hash each.
        missing: The versions of packages of the platform that are not among them, by name: the registry did
            not have them when the lockfile was written.
    """

    packages: dict[str, Any]
    missing: dict[str, str]


def read_lock(agent_id: str) -> Lock | None:
    """Return the agent's lockfile for this platform; None if there is none."""
    file = files("sandbox_agent.agents.install").joinpath("locks", f"{agent_id}.json")
    try:
        lock: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    missing = lock["missing"].get(current_platform())
    return None if missing is None else Lock(lock["packages"], missing)


def current_platform() -> str:
    """Return this machine's platform as lockfiles name it, such as "linux-x64" or "linux-arm64-musl"."""
    machine = _MACHINES.get(platform.machine().lower(), platform.machine())
    musl = "-musl" if "musl" in str(sysconfig.get_config_var("SOABI")) else ""
    return f"{sys.platform}-{machine}{musl}"


def _count(lock: Lock) -> int:
    """Return the number of packages that npm installs on this platform."""
    system, machine, *_ = current_platform().split("-")
    return len(lock.missing) + sum(
        1
        for path, entry in lock.packages.items()
        if path and system in entry.get("os", [system]) and machine in entry.get("cpu", [machine])
    )


def _prepare(
    folder: Path, source: NpmPackages, packages: dict[str, str], lock: Lock | None, node: Node
) -> None:
    """Write what npm reads, and a folder of commands for the agent's PATH; nothing else of a PATH changes."""
    (folder / "bin").mkdir()
    (folder / "bin" / "node").symlink_to(node.path)
    for name in source.on_path:
        (folder / "bin" / name).symlink_to(Path("..", "node_modules", ".bin", name))
    manifest = {
        "private": True,
        "dependencies": packages,
        "optionalDependencies": {} if lock is None else lock.missing,
        "allowScripts": dict.fromkeys(source.scripts, True),
    }
    (folder / "package.json").write_text(json.dumps(manifest))
    if lock is not None:
        document = {"lockfileVersion": 3, "requires": True, "packages": lock.packages}
        (folder / "package-lock.json").write_text(json.dumps(document))


def _find_command(agent_id: str, source: NpmPackages, folder: Path, node: Node) -> list[str]:
    commands = folder / "node_modules" / ".bin"
    command = source.command[0]
    if not (commands / command).is_file():
        command = _only_command(folder / "node_modules" / source.name) or command
    for name in (command, *source.on_path):
        if not (commands / name).is_file():
            raise InstallFailedError(
                f"install failed: the packages of {agent_id} have no command {name}: choose other versions",
                agent=agent_id,
            )
    program = (commands / command).resolve()
    with program.open("rb") as file:
        is_script = file.readline(200).strip() == b"#!/usr/bin/env node"
    return [*([str(node.path)] if is_script else []), str(program), *source.command[1:]]


def _only_command(package: Path) -> str | None:
    """Return the command of a package that has one, as npx chooses it; a registry may not name it."""
    try:
        found: Any = json.loads((package / "package.json").read_bytes()).get("bin")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(found, str):
        return package.name
    names = list(cast("dict[str, Any]", found)) if isinstance(found, dict) else []
    return names[0] if len(names) == 1 and "/" not in names[0] else None
