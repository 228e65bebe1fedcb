"""The agent catalogue: ``catalogue.toml`` as typed values, and the agents that the user has added.

``launch.agent_ids`` adds launchers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from sandbox_agent.engine.permissions import AgentModes, PermissionMode, known_modes
from sandbox_agent.wire.api import AgentCapabilities

# A version becomes part of a folder's name; a tag or a range would install something else each time.
_Exact: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\w+)+([-+][\w.+-]+)?\Z", max_length=100)]
# A folder below the working directory.
_Below: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^(?!.*(^|/)\.\.?(/|$))[^/\0]+(/[^/\0]+)*\Z")]
# The folder in which most agents look for skills.
SKILLS_FOLDER = ".agents/skills"
_NAMES = {"model": "Model", "mode": "Mode", "thought_level": "Thought Level"}


class CredentialFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file under the user's home that holds credentials.

    Attributes:
        path: Relative to the home folder.
        members: If given, the file is JSON and must have a value for one of these members; "*" is any
            member that is an object. An expired login counts only if the agent can renew it.
    """

    path: str
    members: tuple[str, ...] = ()


class AuthMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A method of ACP's ``authenticate`` that needs no user.

    Attributes:
        id: Its id, as the agent offers it.
        env: Environment variables, any of which holds the credentials.
        required: Whether the agent uses the credentials only after ``authenticate`` was called.
    """

    id: str
    env: tuple[str, ...]
    required: bool = False


class Option(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A select option that is known without asking the agent.

    Attributes:
        current: The value that the agent starts with.
        choices: The name of each value.
    """

    current: str
    choices: dict[str, str]


class NpmPackages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The npm packages of an agent.

    Attributes:
        packages: The exact version of each package. The first one speaks ACP.
        command: A command of these packages and its arguments. It speaks ACP.
        node: The oldest version of Node.js that the packages run on, such as "22.19".
        scripts: Packages whose lifecycle scripts are run. Those of all others are not.
        on_path: Commands of these packages that the agent starts by their names.
    """

    packages: dict[str, _Exact]
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    node: str
    scripts: tuple[str, ...] = ()
    on_path: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the first package."""
        return next(iter(self.packages))

    @property
    def version(self) -> str:
        """The version of the first package."""
        return self.packages[self.name]


class PypiPackage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The PyPI package of an agent, which gets a virtual environment of its own.

    Attributes:
        requirement: The package, with extras.
        version: Its exact version.
        command: A command of the environment and its arguments. It speaks ACP.
        also: The exact versions of other packages that it needs and does not require.
    """

    requirement: Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*(\[[\w,.-]+\])?\Z")]
    version: _Exact
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    also: dict[str, _Exact] = {}

    @property
    def name(self) -> str:
        """The name of the package, without extras."""
        return self.requirement.partition("[")[0]

    @property
    def packages(self) -> dict[str, str]:
        """The exact version of the package."""
        return {self.name: self.version}


class ArchiveFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An archive for one platform.

    Attributes:
        url: Where it is: a tar archive (gzip, bzip2 or xz), a zip archive, or the program itself.
        sha256: The SHA-256 checksum of the file, in hexadecimal.
        member: The path of the program in the archive. Not used for a file that is the program.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://\S+\Z")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]
    member: str = ""


class Archive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program that is downloaded as an archive with a checksum.

    Attributes:
        name: The name of the program, for people.
        version: Its exact version.
        args: The arguments with which it speaks ACP.
        platforms: The archive for each platform, such as "linux-x64", "darwin-arm64" or "linux-x64-musl".
    """

    name: str
    version: Annotated[str, msgspec.Meta(pattern=r"^\w[\w.+-]*\Z", max_length=100)]
    args: tuple[str, ...] = ()
    platforms: dict[str, ArchiveFile]

    @property
    def packages(self) -> dict[str, str]:
        """The exact version of the program."""
        return {self.name: self.version}


Package: TypeAlias = NpmPackages | PypiPackage | Archive


class Agent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A known agent.

    Attributes:
        id: Its id in the HTTP API.
        title: Its display name.
        capabilities: What it supports.
        adapters: Command lines to look for on ``PATH``, best first. Each speaks ACP.
        native: The name of the agent's own binary, or None.
        native_args: Arguments that make the binary speak ACP, or None if it needs an adapter.
        command: A command line that speaks ACP. If given, nothing else starts the agent, and it is not
            installed.
        credential_env: Environment variables, any of which holds credentials.
        credential_sets: Sets of variables, for an agent that needs more than one of them to start;
            ``NAME=VALUE`` names a value. Without it, each of ``credential_env`` is enough.
        env: Other variables that the agent reads, such as base URLs; patterns with ``*``. It inherits them
            and ``credential_env`` even with ``--agent-env-policy strict``.
        defaults: Variables that the agent gets with these values unless its environment has them.
        credential_files: Files, any of which holds credentials. An agent with neither needs none.
        state: Files and folders below the home folder in which it keeps its sessions and its configuration.
        auth: Its authentication methods that need no user.
        options: Known select options by ACP category: model, mode, thought_level.
        permission_modes: The agent's modes that a permission mode stands for, best first. Without it, those
            that are known for the id count, or the usual names.
        never_asks: Whether the agent uses its tools without asking for permission, if that is known.
        skills: The folder in which it looks for skills, below its working directory.
        npm: The npm packages that install it, or None.
        pypi: The PyPI package that installs it, or None.
        archive: The archive that installs it, or None.
    """

    id: str
    title: str
    capabilities: AgentCapabilities
    adapters: tuple[tuple[str, ...], ...] = ()
    native: str | None = None
    native_args: tuple[str, ...] | None = None
    command: tuple[str, ...] = ()
    credential_env: tuple[str, ...] = ()
    credential_sets: tuple[tuple[str, ...], ...] = ()
    env: tuple[str, ...] = ()
    defaults: dict[str, str] = {}
    credential_files: tuple[CredentialFile, ...] = ()
    state: tuple[_Below, ...] = ()
    auth: tuple[AuthMethod, ...] = ()
    options: dict[str, Option] = {}
    permission_modes: dict[PermissionMode, tuple[str, ...]] | None = None
    never_asks: bool | None = None
    skills: _Below = SKILLS_FOLDER
    npm: NpmPackages | None = None
    pypi: PypiPackage | None = None
    archive: Archive | None = None

    @property
    def package(self) -> Package | None:
        """What installs it, or None if it cannot be installed by this program."""
        return None if self.command else self.npm or self.pypi or self.archive

    @property
    def credential_variables(self) -> tuple[tuple[str, ...], ...]:
        """The sets of variables, with all of which the agent starts."""
        return self.credential_sets or tuple((name,) for name in self.credential_env)

    @property
    def modes(self) -> AgentModes | None:
        """What its modes mean; None if that is not known."""
        known = known_modes(self.id)
        if self.permission_modes is None and self.never_asks is None:
            return known
        names = known.names if self.permission_modes is None and known is not None else self.permission_modes
        never = known is not None and known.never_asks if self.never_asks is None else self.never_asks
        return AgentModes(names or {}, never)

    @property
    def config_options(self) -> list[dict[str, Any]]:
        """A new copy of ACP's ``configOptions``, as far as they are known without asking the agent."""
        return [
            {
                "id": category,
                "name": _NAMES[category],
                "category": category,
                "type": "select",
                "currentValue": option.current,
                "options": [{"value": value, "name": name} for value, name in option.choices.items()],
            }
            for category, option in self.options.items()
        ]


def _read_catalogue() -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8"))


def to_agent(agent_id: str, entry: Mapping[str, Any]) -> Agent:
    """Return an entry of a catalogue as an agent. ``capabilities`` are the names of what it supports.

    Raises:
        msgspec.ValidationError: A field is unknown, missing or invalid.
    """
    capabilities = AgentCapabilities(**dict.fromkeys(entry["capabilities"], True))
    return msgspec.convert({**entry, "id": agent_id, "capabilities": capabilities}, Agent)


# The entries of the file, from which a user's entry takes what it does not name.
ENTRIES: dict[str, dict[str, Any]] = _read_catalogue()
CATALOGUE: dict[str, Agent] = {agent_id: to_agent(agent_id, entry) for agent_id, entry in ENTRIES.items()}
# What an entry of another file need not name: an agent that speaks ACP can do this.
UNKNOWN_AGENT: dict[str, Any] = {
    "capabilities": ["permissions", "tool_calls", "tool_results", "text_messages", "streaming_deltas"]
}
_known = dict(CATALOGUE)


def known_agents() -> Mapping[str, Agent]:
    """Return the agents that this process knows: those of the catalogue, then those that were added."""
    return _known


def use_agents(agents: Mapping[str, Agent]) -> None:
    """Add a user's agents to those of the catalogue, for this process. An agent with the same id is replaced.

    A former call's agents are forgotten.
    """
    global _known
    _known = {**CATALOGUE, **agents}


def agent_modes(agent_id: str) -> AgentModes | None:
    """Return what the modes of an agent mean; None if that is not known."""
    agent = _known.get(agent_id)
    return None if agent is None else agent.modes
