"""The installations of a server: those that clients ask for, and those of agents at their first use."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import anyio
import anyio.abc

from sandbox_agent.agents.catalogue import known_agents
from sandbox_agent.agents.launch import resolve
from sandbox_agent.errors import AgentNotInstalledError, InstallFailedError, SandboxAgentError, StreamError

if TYPE_CHECKING:
    from sandbox_agent.agents.install.installer import Installed, Progress, Versions

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Receives progress, and lines of npm's or pip's output.
Listener: TypeAlias = "Callable[[Progress | str], None]"


@dataclass(eq=False, slots=True)
class _Running:
    """An installation that runs, and what it came to."""

    listeners: list[Listener] = field(default_factory=list[Listener])
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    done: anyio.Event = field(default_factory=anyio.Event)
    result: Installed | None = None
    error: SandboxAgentError | None = None

    def publish(self, event: Progress | str) -> None:
        for listener in self.listeners:
            listener(event)


class Installations:
    """Installs agents for requests; run() owns the installations.

    An installation continues when the requests that wait for it have gone. The same one is not started twice.

    Args:
        on_first_use: install an agent of the catalogue when a connection or session needs it.
    """

    def __init__(self, *, on_first_use: bool) -> None:
        self._on_first_use = on_first_use
        self._running: dict[tuple[str, Versions | None, bool], _Running] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._closing = False

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Installations]:
        """Install while the context lasts; at its end no installation runs."""
        async with anyio.create_task_group() as self._tasks:
            try:
                yield self
            finally:
                self.close()
        self._tasks = None

    def close(self) -> None:
        """Cancel all installations: nothing of them counts as installed. No other one is started."""
        self._closing = True
        for running in self._running.values():
            running.scope.cancel()

    def is_missing(self, agent: str) -> bool:
        """Return whether ``prepare`` would install the agent.

        Raises:
            UnsupportedAgentError: there is no such agent.
            AgentNotInstalledError: the agent is not installed, and may or can not be installed here.
        """
        try:
            resolve(agent)
        except AgentNotInstalledError:
            known = known_agents().get(agent)
            if not self._on_first_use or known is None or known.package is None:
                raise
            return True
        return False

    async def prepare(self, agent: str, listener: Listener | None = None) -> None:
        """Return when the agent is installed; install it if that is allowed.

        Args:
            agent: the agent's id.
            listener: receives the progress of its installation, if it is not installed.

        Raises:
            UnsupportedAgentError: there is no such agent.
            AgentNotInstalledError: the agent is not installed, and may or can not be installed here.
            InstallFailedError: the installation failed.
            StreamError: the server is shutting down.
        """
        if self.is_missing(agent):
            await self.install(agent, listener=listener)
            resolve(agent)

    async def install(
        self,
        agent: str,
        *,
        versions: Versions | None = None,
        reinstall: bool = False,
        listener: Listener | None = None,
    ) -> Installed:
        """Install an agent, or wait for the same installation if it runs; see the installer's ``install``.

        Raises:
            UnsupportedAgentError: there is no such agent.
            InvalidRequestError: the agent cannot be installed, or not in these versions.
            ConflictError: its launcher was written by another program.
            InstallFailedError: the installation failed.
            StreamError: the server is shutting down.
        """
        if self._tasks is None or self._closing:
            raise _shutting_down()
        key = (agent, versions, reinstall)
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = _Running()
            self._tasks.start_soon(self._install, key, running)
        if listener is not None:
            running.listeners.append(listener)
        try:
            await running.done.wait()
        finally:
            if listener is not None:
                running.listeners.remove(listener)
        if running.result is None:
            raise running.error or _shutting_down()
        return running.result

    async def _install(self, key: tuple[str, Versions | None, bool], running: _Running) -> None:
        # Imported when it is used, as it makes the server's start longer.
        from sandbox_agent.agents.install.installer import install

        agent, versions, reinstall = key
        logger.info("agent %s: installing", agent)
        try:
            with running.scope:
                running.result = await install(
                    agent,
                    versions=versions,
                    reinstall=reinstall,
                    on_progress=running.publish,
                    on_log=running.publish,
                )
                found = running.result.installation
                logger.info("agent %s: installed%s", agent, f", version {found.version}" if found else "")
        except SandboxAgentError as error:
            logger.warning("agent %s: %s", agent, error)
            running.error = error
        except Exception:
            logger.exception("agent %s: the installation failed", agent)
            running.error = InstallFailedError(
                "install failed: an unexpected error; see the server's log for details", agent=agent
            )
        finally:
            del self._running[key]
            running.done.set()


def _shutting_down() -> StreamError:
    return StreamError("stream error: the server is shutting down")
