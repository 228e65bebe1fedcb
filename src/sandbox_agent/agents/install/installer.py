"""Installs, updates and removes agents. Across processes, one installation of an agent runs at a time.

An installation fills a new folder and starts the agent there once. Then it replaces the launcher by a rename.
Until then the former installation counts, or none. The next installation deletes the folder that a killed one
left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread

from sandbox_agent.agents.catalogue import Agent, Archive, NpmPackages, Package, PypiPackage, known_agents
from sandbox_agent.agents.install.command import COMMAND_SECONDS
from sandbox_agent.agents.install.installed import (
    Installation,
    agent_folder,
    read_installation,
    write_launcher,
)
from sandbox_agent.agents.install.node import find_node
from sandbox_agent.agents.install.npm import install_npm
from sandbox_agent.agents.install.probe import probe_agent
from sandbox_agent.agents.install.pypi import install_pypi
from sandbox_agent.agents.launch import agent_ids, has_launcher, launcher_path
from sandbox_agent.errors import ConflictError, InstallFailedError, InvalidRequestError, UnsupportedAgentError
from sandbox_agent.runtime.warden import Warden
from sandbox_agent.wire.api import AgentInstallArtifact, AgentInstallResponse

Phase = Literal["waiting", "installing", "starting", "installed"]
_SOURCES: dict[type[Package], str] = {NpmPackages: "npm", PypiPackage: "pypi", Archive: "archive"}
# How often a locked agent is tried again.
_POLL_SECONDS = 0.2
# A tag, a range or a URL would install something else each time.
_EXACT = re.compile(r"\d+(\.\w+)+([-+][\w.+-]+)?", re.ASCII)
# Another process may run all commands of an installation to their limits.
LOCK_SECONDS = 2 * COMMAND_SECONDS


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an installation is.

    Attributes:
        agent: The agent's id.
        phase: "waiting" for another process that installs the agent, "installing" its packages, "starting" it
            to see that it works, or "installed".
        done: The number of packages that were downloaded.
        total: The number of all packages, or None if it is not known.
    """

    agent: str
    phase: Phase
    done: int = 0
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Installed:
    """The result of an installation.

    Attributes:
        agent: The agent's id.
        already_installed: Whether it was installed before, and nothing was done.
        installation: What is installed; None for a launcher that another program wrote, and for ``mock``.
    """

    agent: str
    already_installed: bool
    installation: Installation | None


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions to install; None for those of the catalogue.

    Attributes:
        acp: Version of the package that speaks ACP.
        native: Version of the agent's own package, where it is another one.
    """

    acp: str | None = None
    native: str | None = None


def _ignore(_: object) -> None:
    return None


async def install(
    agent_id: str,
    *,
    versions: Versions | None = None,
    reinstall: bool = False,
    on_progress: Callable[[Progress], None] = _ignore,
    on_log: Callable[[str], None] = _ignore,
) -> Installed:
    """Install an agent, unless it is installed in these versions.

    If the caller is cancelled, or this process is killed, what was installed before still is.

    Args:
        agent_id: An agent of the catalogue.
        versions: Other versions than those of the catalogue.
        reinstall: Install it again.
        on_progress: Called as the installation proceeds.
        on_log: Called with lines of the output of npm or pip, without secrets.

    Raises:
        UnsupportedAgentError: No agent has this id.
        InvalidRequestError: The agent cannot be installed by this program, or not in these versions.
        ConflictError: Another program wrote its launcher, which would be replaced.
        InstallFailedError: The installation failed. The message has the reason.
    """
    plan = check_installable(agent_id, versions)
    if plan is None:
        return Installed(agent_id, already_installed=True, installation=None)
    source, packages = plan
    async with _locked(agent_id, on_progress):
        existing = read_installation(agent_id)
        if existing is None and has_launcher(agent_id):
            if reinstall or versions is not None:
                raise _not_ours(agent_id)
            return Installed(agent_id, already_installed=True, installation=None)
        is_wanted = versions is None or (existing is not None and existing.packages == packages)
        if existing is not None and is_wanted and not reinstall and existing.is_complete():
            on_progress(Progress(agent_id, "installed"))
            return Installed(agent_id, already_installed=True, installation=existing)
        await _delete_folders(agent_id, keep=existing)
        folder = agent_folder(agent_id) / f"{next(iter(packages.values()))}-{secrets.token_hex(4)}"
        done = False
        try:
            installation = await _fill(agent_id, source, packages, folder, on_progress, on_log)
            done = True
        finally:
            if not done:
                with anyio.CancelScope(shield=True):  # bounded: it deletes one folder
                    await _delete(folder)
        on_progress(Progress(agent_id, "installed"))
        return Installed(agent_id, already_installed=False, installation=installation)


def check_installable(agent_id: str, versions: Versions | None) -> tuple[Package, dict[str, str]] | None:
    """Return what installs the agent, with the version of each package; None for the built-in agent.

    Raises:
        UnsupportedAgentError: No agent has this id.
        InvalidRequestError: The agent cannot be installed by this program, or not in these versions.
    """
    agent = _known(agent_id)
    if agent.id == "mock":
        return None
    source = agent.package
    if agent.command:
        raise InvalidRequestError(
            f"invalid request: {agent_id} is not installed by this program: its command is given, by the "
            "agents file or --agent-command"
        )
    if source is None:
        raise InvalidRequestError(
            f"invalid request: {agent_id} has no package that can be installed: put its command on PATH, or "
            f"a launcher at $XDG_DATA_HOME/sandbox-agent/bin/agent_processes/{agent_id}-acp"
        )
    return source, _packages(agent_id, source, versions or Versions())


async def update(
    agent_id: str,
    *,
    on_progress: Callable[[Progress], None] = _ignore,
    on_log: Callable[[str], None] = _ignore,
) -> Installed | None:
    """Install the versions of the catalogue, if this program has installed others; see install().

    Returns:
        The result, or None if this program has not installed the agent.
    """
    agent = _known(agent_id)
    if agent.package is None or read_installation(agent_id) is None:
        return None
    return await install(agent_id, versions=Versions(), on_progress=on_progress, on_log=on_log)


async def uninstall(agent_id: str) -> bool:
    """Remove an agent that this program has installed, and return whether there was one.

    Raises:
        UnsupportedAgentError: No agent has this id.
        ConflictError: Another program wrote its launcher.
    """
    if agent_id not in agent_ids():
        _known(agent_id)
    async with _locked(agent_id, _ignore):
        existing = read_installation(agent_id)
        if existing is None and has_launcher(agent_id):
            raise _not_ours(agent_id)
        launcher_path(agent_id).unlink(missing_ok=True)
        await _delete_folders(agent_id, keep=None)
        return existing is not None


def response_of(result: Installed) -> AgentInstallResponse:
    """Return the result as the HTTP API has it."""
    artifacts: list[AgentInstallArtifact] = []
    found = result.installation
    if found is not None:
        launcher = str(launcher_path(result.agent))
        artifacts.append(
            AgentInstallArtifact(
                kind="agent_process", path=launcher, source=found.source, version=found.version
            )
        )
        artifacts += [
            AgentInstallArtifact(
                kind="native_agent",
                path=str(Path(found.folder, "node_modules", name)),
                source=found.source,
                version=version,
            )
            for name, version in list(found.packages.items())[1:]
        ]
    elif result.agent != "mock":
        artifacts.append(
            AgentInstallArtifact(
                kind="agent_process", path=str(launcher_path(result.agent)), source="local_path"
            )
        )
    return AgentInstallResponse(already_installed=result.already_installed, artifacts=artifacts)


def _known(agent_id: str) -> Agent:
    agent = known_agents().get(agent_id)
    if agent is None:
        raise UnsupportedAgentError(
            f"unsupported agent: {agent_id}; known here: {', '.join(agent_ids())}", agent=agent_id
        )
    return agent


def _not_ours(agent_id: str) -> ConflictError:
    return ConflictError(
        f"conflict: the launcher of {agent_id} was not written by this program, which does not replace or "
        f"delete it: delete bin/agent_processes/{agent_id}-acp in $XDG_DATA_HOME/sandbox-agent first"
    )


def _packages(agent_id: str, source: Package, versions: Versions) -> dict[str, str]:
    """Return the version of each package."""
    acp, *others = source.packages
    packages = dict(source.packages)
    for name, version in ((acp, versions.acp), (others[0] if others else None, versions.native)):
        if version is None:
            continue
        if isinstance(source, Archive):
            raise InvalidRequestError(
                f"invalid request: the version of {agent_id} cannot be chosen: it is that of its archive"
            )
        if name is None:
            raise InvalidRequestError(
                f"invalid request: the version of {agent_id} itself cannot be chosen: it is part of {acp}"
            )
        if not _EXACT.fullmatch(version):
            raise InvalidRequestError(f"invalid request: {version!r} is not an exact version such as 1.2.3")
        packages[name] = version
    return packages


async def _fill(
    agent_id: str,
    source: Package,
    packages: dict[str, str],
    folder: Path,
    on_progress: Callable[[Progress], None],
    on_log: Callable[[str], None],
) -> Installation:
    """Install the packages, start the agent once, and replace its launcher."""

    def report(done: int, total: int | None) -> None:
        on_progress(Progress(agent_id, "installing", done, total))

    report(0, None)
    try:
        await anyio.to_thread.run_sync(lambda: folder.mkdir(parents=True))
        warden = Warden(uuid.uuid4().hex)
        try:
            if isinstance(source, NpmPackages):
                node = await anyio.to_thread.run_sync(lambda: find_node(source.node, agent_id=agent_id))
                argv = await install_npm(
                    agent_id,
                    source,
                    packages,
                    folder,
                    node=node,
                    warden=warden,
                    on_progress=report,
                    on_line=on_log,
                )
            elif isinstance(source, Archive):
                # Only here is the HTTP client loaded.
                from sandbox_agent.agents.install.archive import install_archive

                argv = await install_archive(agent_id, source, folder, on_progress=report)
            else:
                argv = await install_pypi(
                    agent_id,
                    source,
                    packages[source.name],
                    folder,
                    warden=warden,
                    on_progress=report,
                    on_line=on_log,
                )
            on_path = folder / "bin" if isinstance(source, NpmPackages) else None
            on_progress(Progress(agent_id, "starting"))
            reported = await probe_agent(agent_id, argv, on_path, warden)
        finally:
            with anyio.CancelScope(shield=True):  # bounded by the warden's own limit
                await warden.close()
        installation = Installation(
            folder=str(folder),
            source=_SOURCES[type(source)],
            packages=packages,
            reported=reported,
        )
        write_launcher(agent_id, installation, argv, on_path)
    except OSError as error:
        raise InstallFailedError(
            f"install failed: the files of {agent_id} cannot be written: {error.strerror}", agent=agent_id
        ) from error
    return installation


@asynccontextmanager
async def _locked(agent_id: str, on_progress: Callable[[Progress], None]) -> AsyncGenerator[None]:
    """Hold the agent's lock. The system releases it when this process ends, however it ends."""
    folder = agent_folder(agent_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InstallFailedError(
            f"install failed: $XDG_DATA_HOME/sandbox-agent cannot be written: {error.strerror}",
            agent=agent_id,
        ) from error
    try:
        if not _try_lock(lock):
            on_progress(Progress(agent_id, "waiting"))
            with anyio.move_on_after(LOCK_SECONDS):
                while not _try_lock(lock):  # noqa: ASYNC110 - another process has the lock
                    await anyio.sleep(_POLL_SECONDS)
            if not _try_lock(lock):
                raise InstallFailedError(
                    f"install failed: another process has been installing {agent_id} for {LOCK_SECONDS:g} s: "
                    "end it and try again",
                    agent=agent_id,
                )
        yield
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


async def _delete_folders(agent_id: str, *, keep: Installation | None) -> None:
    """Delete all installations but one: running agents may still use the files of the last one."""
    for folder in agent_folder(agent_id).iterdir():
        if folder.is_dir() and (keep is None or str(folder) != keep.folder):
            await _delete(folder)


async def _delete(folder: Path) -> None:
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
