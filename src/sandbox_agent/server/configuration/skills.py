"""Puts the skills that are configured for a folder to where an agent looks for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
from anyio.to_thread import run_sync

from sandbox_agent.agents.catalogue import SKILLS_FOLDER, known_agents
from sandbox_agent.errors import ProblemError, StreamError
from sandbox_agent.server.agents.openings import LeftOut
from sandbox_agent.server.configuration.skill_files import Installed, Skill, SkillError, read_skills
from sandbox_agent.server.configuration.skill_sources import Repositories
from sandbox_agent.server.files.places import Places, Root
from sandbox_agent.server.files.tree import FileTree
from sandbox_agent.wire.configuration import SkillsConfig, SkillSource

# All that a session needs. Clients wait longer.
PROVIDE_SECONDS: Final = 100.0


class Skills:
    """Provides the skills of folders.

    Args:
        tree: gives access to local sources.
        repositories: give access to all others.
    """

    def __init__(self, tree: FileTree, repositories: Repositories) -> None:
        self._tree = tree
        self._repositories = repositories

    async def provide(
        self, directory: str, agent: str, configured: Mapping[str, SkillsConfig], when: float
    ) -> Sequence[LeftOut]:
        """Fetch and install skills for an agent; those that are not configured any more are removed.

        Args:
            directory: the working directory.
            agent: the agent's id.
            configured: the skills of the folder.
            when: when they were configured, in seconds since the epoch.

        Returns:
            The skills that were not installed, because the user has one with that name.

        Raises:
            StreamError: skills can't be fetched or installed, or are unusable.
        """
        skills: dict[str, Skill] = {}
        left_out: list[LeftOut] = []
        for name, found in (await self._fetch(directory, configured, when)).items():
            left_out += [
                LeftOut("skills", name, f"there are two different skills {each.name}")
                for each in found
                if skills.setdefault(each.name, each).version != each.version
            ]
        known = known_agents().get(agent)
        folder = SKILLS_FOLDER if known is None else known.skills
        try:
            taken = await run_sync(_install, directory, folder, skills)
        except ProblemError as error:
            raise StreamError(
                f"stream error: the skills of {directory} can't be installed: {error}"
            ) from error
        return [
            *left_out,
            *(LeftOut("skills", name, f"{folder}/{name} exists and is not the server's") for name in taken),
        ]

    async def _fetch(
        self, directory: str, configured: Mapping[str, SkillsConfig], when: float
    ) -> Mapping[str, Sequence[Skill]]:
        """Return the skills of each entry."""
        found: dict[str, Sequence[Skill]] = {}
        name = ""
        try:
            with anyio.fail_after(PROVIDE_SECONDS):
                for name, config in configured.items():
                    found[name] = [
                        skill
                        for source in config.sources
                        for skill in await self._read(directory, source, when)
                    ]
        except (SkillError, TimeoutError) as error:
            late = f"they were not fetched within {PROVIDE_SECONDS:g} s"
            reason = late if isinstance(error, TimeoutError) else error
            raise StreamError(
                f"stream error: the skills {name!r} of {directory} can't be provided: {reason}; no "
                "session is opened without them: repair them, or delete them from the configuration"
            ) from error
        return found

    async def _read(self, directory: str, source: SkillSource, when: float) -> Sequence[Skill]:
        name = source.source.rstrip("/").removesuffix(".git").rpartition("/")[2]
        if source.type == "local":
            path = os.path.join(directory, source.source)
            return await run_sync(_read, self._tree, path, source, name)
        if source.type not in ("github", "git"):
            raise SkillError(f"unknown type {source.type!r} of a source: use github, git or local")
        async with self._repositories.open(source, when) as folder:
            # Whatever --fs-root is, the cache is the server's own.
            cache = FileTree(Places([Root(folder.resolve())], folder))
            return await run_sync(_read, cache, str(folder.resolve()), source, name)


def _read(tree: FileTree, path: str, source: SkillSource, name: str) -> list[Skill]:
    try:
        with tree.open_folder(path) as (folder, _):
            return list(read_skills(folder, source.subpath, source.skills, name))
    except ProblemError as error:
        raise SkillError(str(error)) from error


def _install(directory: str, folder: str, skills: Mapping[str, Skill]) -> list[str]:
    # Links in the working directory may not lead out of it.
    root = Path(directory).resolve()
    tree = FileTree(Places([Root(root)], root))
    return Installed(tree, str(root), folder).sync(skills)
