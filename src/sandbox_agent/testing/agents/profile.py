"""What a check knows about an agent, as data: how it reaches the scripted model, and what it can't do."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from sandbox_agent.errors import InvalidRequestError

Outcome: TypeAlias = Literal["ok", "partly", "none", "failed"]


class Deviation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scenario that the agent does not pass, and why that is not our fault.

    Attributes:
        outcome: "partly", or "none" if the agent has no such thing.
        reason: Why, in one line.
        seen: What the failed scenario says about it. If it says something else, the check fails.
    """

    outcome: Literal["partly", "none"]
    reason: str
    seen: str


class ToolUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model writes a file with a tool of the agent.

    Attributes:
        name: The tool.
        arguments: Its arguments; ``{path}`` and ``{text}`` are replaced in their strings.
    """

    name: str
    arguments: dict[str, Any]

    def directive(self, path: Path, text: str) -> str:
        """Return the directive of the scripted model that writes the file."""
        arguments = (
            json.dumps(self.arguments).replace("{path}", _quoted(path)).replace("{text}", _quoted(text))
        )
        return f"[[call {self.name} {arguments}]]"


def _quoted(value: object) -> str:
    return json.dumps(str(value))[1:-1]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a check knows about an agent.

    Attributes:
        env: Variables with which it uses the scripted model. ``{url}`` is replaced by the model's URL,
            ``{home}`` by the agent's home folder.
        files: Files in its home folder, with the same replacements.
        write: How it writes a file, or None if that is not known: scenarios with tools are left out.
        write_selected: The same for the model ``model``, if that has other tools.
        mcp: The transport of the MCP server that it is given.
        mcp_call: The directives that call that server's tool ``add_numbers`` with 40 and 2.
        retry_seconds: How long it may go on with a model that fails before the turn is cancelled.
        model: A model to select, other than the default.
        model_sent: The name of that model in requests; None for the same.
        mode: A mode to select, other than the default.
        thought_level: A thought level to select.
        option: The id of another option, and a value to set.
        expected: Scenarios that the agent does not pass, by name, or by route and name (``sdk.model``).
    """

    env: dict[str, str] = {}
    files: dict[str, str] = {}
    write: ToolUse | None = None
    write_selected: ToolUse | None = None
    mcp: Literal["stdio", "http"] = "stdio"
    mcp_call: str = '[[call add_numbers {"a": 40, "b": 2}]]'
    retry_seconds: float = 4.0
    model: str | None = None
    model_sent: str | None = None
    mode: str | None = None
    thought_level: str | None = None
    option: tuple[str, str | bool] | None = None
    expected: dict[str, Deviation] = {}

    def deviation(self, route: str, scenario: str) -> Deviation | None:
        """Return how the agent deviates from a scenario, or None if it passes."""
        return self.expected.get(f"{route}.{scenario}") or self.expected.get(scenario)

    def variables(self, url: str, home: Path) -> dict[str, str]:
        """Return its variables for a model at that URL and that home folder."""
        return {name: _filled(value, url, home) for name, value in self.env.items()}

    def write_files(self, url: str, home: Path) -> None:
        """Write its files."""
        for name, content in self.files.items():
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled(content, url, home), encoding="utf-8")


def _filled(text: str, url: str, home: Path) -> str:
    return text.replace("{url}", url).replace("{home}", str(home))


def profile_of(agent_id: str, file: Path | None = None) -> Profile:
    """Return the profile of an agent. One that is not known gets the usual variables of all four APIs.

    Args:
        agent_id: The agent's id.
        file: A TOML file with a profile, or None for those of this package.

    Raises:
        InvalidRequestError: The file is not a profile.
    """
    if file is None:
        text = files("sandbox_agent.testing.agents").joinpath("profiles.toml").read_text(encoding="utf-8")
        profiles = tomllib.loads(text)
        return msgspec.convert(profiles.get(agent_id, profiles["default"]), Profile)
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Profile)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{file} is not a profile of an agent: {error}") from error


def known_profiles() -> list[str]:
    """Return the ids of the agents that have a profile in this package."""
    text = files("sandbox_agent.testing.agents").joinpath("profiles.toml").read_text(encoding="utf-8")
    return [agent_id for agent_id in tomllib.loads(text) if agent_id != "default"]
