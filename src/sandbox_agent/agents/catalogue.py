"""The agent catalogue: ``catalogue.toml`` as typed values. ``launch.agent_ids`` adds launchers."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

import msgspec

from sandbox_agent.agents.mock import sessions as mock_sessions
from sandbox_agent.wire.api import AgentCapabilities

_NAMES = {"model": "Model", "mode": "Mode", "thought_level": "Thought Level"}


class CredentialFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file under the user's home that holds credentials.

    Attributes:
        path: Relative to the home folder.
        members: If given, the file is JSON and must have a value for one of these members.
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

    packages: dict[str, str]
    command: tuple[str, ...]
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
    """

    requirement: str
    version: str
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the package, without extras."""
        return self.requirement.partition("[")[0]

    @property
    def packages(self) -> dict[str, str]:
        """The exact version of the package."""
        return {self.name: self.version}


class Agent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A known agent.

    Attributes:
        id: Its id in the HTTP API.
        title: Its display name.
        capabilities: What it supports.
        adapters: Command lines to look for on ``PATH``, best first. Each speaks ACP.
        native: The name of the agent's own binary, or None.
        native_args: Arguments that make the binary speak ACP, or None if it needs an adapter.
        credential_env: Environment variables, any of which holds credentials.
        env: Other variables that the agent reads, such as base URLs; patterns with ``*``. It inherits them
            and ``credential_env`` even with ``--agent-env-policy strict``.
        defaults: Variables that the agent gets with these values unless its environment has them.
        credential_files: Files, any of which holds credentials. An agent with neither needs none.
        auth: Its authentication methods that need no user.
        options: Known select options by ACP category: model, mode, thought_level.
        npm: The npm packages that install it, or None.
        pypi: The PyPI package that installs it, or None.
    """

    id: str
    title: str
    capabilities: AgentCapabilities
    adapters: tuple[tuple[str, ...], ...] = ()
    native: str | None = None
    native_args: tuple[str, ...] | None = None
    credential_env: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    defaults: dict[str, str] = {}
    credential_files: tuple[CredentialFile, ...] = ()
    auth: tuple[AuthMethod, ...] = ()
    options: dict[str, Option] = {}
    npm: NpmPackages | None = None
    pypi: PypiPackage | None = None

    @property
    def package(self) -> NpmPackages | PypiPackage | None:
        """What installs it, or None if it cannot be installed by this program."""
        return self.npm or self.pypi

    @property
    def config_options(self) -> list[dict[str, Any]]:
        """A new copy of ACP's ``configOptions``, as far as they are known without asking the agent."""
        if self.id == "mock":
            return mock_sessions.config_options(dict(mock_sessions.DEFAULTS))
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


def _load_catalogue() -> dict[str, Agent]:
    text = files("sandbox_agent.agents").joinpath("catalogue.toml").read_text(encoding="utf-8")
    agents: dict[str, Agent] = {}
    for agent_id, entry in tomllib.loads(text).items():
        # The file lists the names of what is supported.
        capabilities = AgentCapabilities(**dict.fromkeys(entry["capabilities"], True))
        agents[agent_id] = msgspec.convert({**entry, "id": agent_id, "capabilities": capabilities}, Agent)
    return agents


CATALOGUE: dict[str, Agent] = _load_catalogue()
