"""What sessions get from the configuration of their folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from anyio.to_thread import run_sync

from sandbox_agent.agents.environment import AgentEnvironment
from sandbox_agent.errors import PermissionDeniedError, StreamError
from sandbox_agent.server.agents.openings import Additions, LeftOut
from sandbox_agent.server.configuration.files import FOLDER, MCP, SKILLS, ConfigFiles
from sandbox_agent.server.configuration.mcp import NotUsableError, to_acp
from sandbox_agent.server.configuration.skills import Skills
from sandbox_agent.wire.configuration import McpServerConfig, SkillsConfig

logger: logging.Logger = logging.getLogger("sandbox_agent.server")


class FolderConfiguration:
    """Reads the configuration of a folder for each session that is opened in it.

    Args:
        files: the configurations of all folders.
        environment: what agents inherit.
        skills: provide those that are configured.
    """

    def __init__(self, files: ConfigFiles, environment: AgentEnvironment, skills: Skills) -> None:
        self._skills = skills
        self._files = files
        self._environment = environment

    async def prepare(
        self, directory: str, *, agent: str, env: Mapping[str, str], capabilities: Mapping[str, Any]
    ) -> Additions:
        """Return what a session in a folder gets; see ``Configuration.prepare``."""
        configured, skills, when = await run_sync(self._read, directory)
        servers: list[Mapping[str, Any]] = []
        left_out: list[LeftOut] = []
        # As the agent has them: the server's own secrets are not among them.
        variables = {**self._environment.variables(agent), **env} if configured else {}
        for name, config in configured.items():
            if config.enabled is False:
                continue
            try:
                servers.append(to_acp(name, config, directory, variables, capabilities))
            except NotUsableError as error:
                left_out.append(LeftOut("mcp", name, str(error)))
        if when is not None:
            left_out += await self._skills.provide(directory, agent, skills, when)
        for each in left_out:
            logger.warning("%s in %s: %s is left out: %s", agent, directory, each.title, each.reason)
        return Additions(servers, left_out)

    def _read(
        self, directory: str
    ) -> tuple[Mapping[str, McpServerConfig], Mapping[str, SkillsConfig], float | None]:
        """Return the MCP servers, the skills, and when the skills were configured; None for never."""
        # A folder that can't be read is for the agent to report.
        if not os.path.isdir(os.path.join(directory, *FOLDER)):
            return {}, {}, None
        # The agents' user would have the server read and fetch what only the server's user may.
        own = self._environment.user is not None
        try:
            servers = self._files.read(directory, MCP)
            skills = self._files.read(directory, SKILLS, own=own)
        except PermissionDeniedError as error:
            raise StreamError(
                f"stream error: the configuration of {directory} can't be read: {error}"
            ) from error
        try:
            return servers, skills, os.stat(os.path.join(directory, *FOLDER, SKILLS.name)).st_mtime
        except FileNotFoundError:
            return servers, skills, None
