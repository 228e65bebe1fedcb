"""The server's child processes: agents, and the processes of the sandbox. They end when the server dies."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from sandbox_agent.cgroups import PREFIX, CgroupError
from sandbox_agent.persist.private import make_private_folder
from sandbox_agent.runtime.limits import LimitedGroup, Limits
from sandbox_agent.runtime.orphans import RunFile, end_orphans
from sandbox_agent.runtime.process import Process, SpawnError
from sandbox_agent.runtime.pty import TerminalSize
from sandbox_agent.runtime.user import User
from sandbox_agent.runtime.warden import KEEPS, Warden

logger: logging.Logger = logging.getLogger("sandbox_agent.server")


class Children:
    """Starts child processes, which end when the server does, also if it is killed.

    Args:
        run_folder: where this server records its children, and finds those that killed servers have left.
        limits: what the processes of one child may use, if it is started with limits.
    """

    def __init__(
        self,
        run_folder: Path | None = None,
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> None:
        self._run_folder = run_folder
        self._run_file: RunFile | None = None
        self._limits = limits
        self._has_groups = False
        self._tag = uuid.uuid4().hex
        self._warden = Warden(self._tag)
        self._tasks: anyio.abc.TaskGroup | None = None

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Children]:
        """Start children while the context lasts; their owners have ended them before its end."""
        parents = await anyio.to_thread.run_sync(self._find_parents)
        if self._run_folder is not None and KEEPS:
            self._run_file = await anyio.to_thread.run_sync(
                _open_run_file, self._run_folder, self._tag, parents
            )
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._warden.run)
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):  # bounded by the warden's own limit
                    await self.close()
                if self._run_file is not None:
                    self._run_file.close()
                self._tasks.cancel_scope.cancel()
        self._tasks = None

    async def close(self) -> None:
        """End the warden: all children have ended, and no other is started."""
        await self._warden.close()

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        user: User | None = None,
        cwd: str | os.PathLike[str] | None = None,
        limited: bool = False,
        lingers: bool = False,
        size: TerminalSize | None = None,
    ) -> Process:
        """Start a command; call ``release`` when it has ended.

        Args:
            argv: the program and its arguments.
            env: its environment.
            user: its user; None for the server's.
            cwd: its working directory; None for the server's.
            limited: whether it is started with limits.
            lingers: see Process.spawn.
            size: that of its terminal; None for pipes.

        Raises:
            SpawnError: it can't be started.
        """
        assert self._tasks is not None
        group = await self._create_group() if limited else None
        try:
            await self._warden.ready()  # first: from here on a killed server leaves no orphans
            process = await Process.spawn(
                argv,
                env=env,
                user=user,
                cwd=cwd,
                tag_prefix=self._tag,
                warden=self._warden,
                group=group,
                lingers=lingers,
                size=size,
            )
        except BaseException as error:
            await _remove_group(group)
            if isinstance(error, OSError):  # of the warden
                raise SpawnError(f"can't start {argv[0]}: {error.strerror}") from error
            raise
        if self._run_file is not None and not lingers:  # what it leaves is found by its tag
            self._run_file.add(process.pid, process.tag)
        if not KEEPS:
            self._tasks.start_soon(self._watch, process.pid)
        return process

    async def release(self, process: Process) -> None:
        """Forget a child that has ended. Processes that are left in its control group are killed."""
        await _remove_group(process.group)
        if self._run_file is not None:
            self._run_file.remove(process.pid)
        if not KEEPS:
            await self._warden.release(process.pid)

    def _find_parents(self) -> list[str]:
        """Return where the control groups of children are created; none without limits or permission."""
        if not (KEEPS and any(self._limits)):
            return []
        try:
            parents = self._limits.find_parents()
        except CgroupError as error:
            logger.info("what agents use is watched, because no control groups can be created: %s", error)
            return []
        self._has_groups = True
        return parents

    async def _create_group(self) -> LimitedGroup | None:
        if not self._has_groups:
            return None
        name = f"{PREFIX}{self._tag}-{uuid.uuid4().hex[:8]}"
        try:
            with anyio.CancelScope(shield=True):  # else one that is created would be forgotten
                return await anyio.to_thread.run_sync(self._limits.create_group, name)
        except CgroupError as error:
            logger.warning("an agent has no control group, and what it uses is watched: %s", error)
            return None

    async def _watch(self, group: int) -> None:
        try:
            await self._warden.watch(group)
        except OSError:
            logger.exception("no warden: if this server is killed, its children may outlive it")


async def _remove_group(group: LimitedGroup | None) -> None:
    """Remove a child's control group. Processes that are left in it are killed."""
    if group is not None:
        with anyio.CancelScope(shield=True):  # bounded: both steps have a deadline
            await anyio.to_thread.run_sync(group.kill)
            await anyio.to_thread.run_sync(group.remove)


def _open_run_file(folder: Path, tag: str, cgroups: list[str]) -> RunFile | None:
    """End the children that killed servers have left, and create this server's file."""
    try:
        make_private_folder(folder)
        if count := end_orphans(folder):
            logger.warning("%d processes of agents were ended, left by a server that was killed", count)
        return RunFile.create(folder, tag, cgroups)
    except OSError as error:
        logger.warning(
            "%s can't be used (%s): if this server is killed with its warden, its agents may outlive it",
            folder,
            error.strerror,
        )
        return None
