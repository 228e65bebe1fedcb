"""A user's own agents: a TOML file with entries like those of the catalogue, and commands."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import platformdirs

from sandbox_agent.agents.catalogue import (
    CATALOGUE,
    ENTRIES,
    UNKNOWN_AGENT,
    Agent,
    Archive,
    AuthMethod,
    CredentialFile,
    NpmPackages,
    Option,
    PypiPackage,
    to_agent,
    use_agents,
)
from sandbox_agent.agents.launch import is_agent_id
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.api import AgentCapabilities

VARIABLE = "SANDBOX_AGENT_AGENTS"
# The files of users are small. This bounds what a wrong path costs.
_MAX_BYTES = 4 * 1024 * 1024
_CATEGORIES = ("model", "mode", "thought_level")
# The type of each field that is a table or an array of tables.
_TABLES: dict[str, type[msgspec.Struct]] = {
    "archive": Archive,
    "auth": AuthMethod,
    "credential_files": CredentialFile,
    "npm": NpmPackages,
    "options": Option,
    "pypi": PypiPackage,
}


def load_user_agents(file: Path | None, commands: Iterable[str] = (), registry: str | None = None) -> None:
    """Make a user's agents known to this process: those of the file come before those of the registry.

    Args:
        file: The file that the user names, or None for ``agents.toml`` in the user's configuration folder, if
            it exists.
        commands: Agents as ``ID=COMMAND ARGUMENTS``, in the words of a shell.
        registry: The URL of an ACP registry's document, or None. If it cannot be used, that is logged.

    Raises:
        InvalidRequestError: The file cannot be read, or an entry or a command is invalid.
    """
    agents = read_agents(file) if file is not None else _read_default()
    if registry:
        from sandbox_agent.agents.acp_registry import fetch_registry

        agents = {**fetch_registry(registry), **agents}
    for command in commands:
        agent = parse_command(command, agents)
        agents[agent.id] = agent
    use_agents(agents)


def _read_default() -> dict[str, Agent]:
    file = default_file()
    try:
        exists = file.is_file()
    except OSError:  # a folder of the user's that this process may not enter
        exists = False
    return read_agents(file) if exists else {}


def default_file() -> Path:
    """Return ``agents.toml`` in the user's configuration folder; it may not exist."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    if Path(home).is_absolute():
        return Path(home) / "sandbox-agent" / "agents.toml"
    return platformdirs.user_config_path("sandbox-agent", appauthor=False) / "agents.toml"


def read_agents(file: Path) -> dict[str, Agent]:
    """Return the agents of a file. What an entry with a known id does not name is as in the catalogue.

    Raises:
        InvalidRequestError: It cannot be read, or an entry is invalid.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise _wrong(file, f"it is larger than {_MAX_BYTES} bytes: name another file")
        entries = tomllib.loads(data.decode())
    except OSError as error:
        raise _wrong(file, f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _wrong(file, "it is not UTF-8: save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _wrong(file, f"it is not TOML: {error}") from error
    return {agent_id: _read_entry(file, agent_id, entry) for agent_id, entry in entries.items()}


def parse_command(text: str, agents: Mapping[str, Agent] | None = None) -> Agent:
    """Return an agent that is given as ``ID=COMMAND ARGUMENTS``.

    Args:
        text: The id and the command, in the words of a shell.
        agents: Agents of a file; with their ids, and with those of the catalogue, only the command is new.

    Raises:
        InvalidRequestError: The id or the command is invalid.
    """
    agent_id, _, command = text.partition("=")
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise InvalidRequestError(f"invalid agent command {text!r}: {error}") from error
    if not is_agent_id(agent_id) or not words:
        raise InvalidRequestError(
            f"invalid agent command {text!r}: use ID=COMMAND ARGUMENTS, such as 'mine=my-agent --acp'; an id "
            "has letters, digits, '.', '_' and '-'"
        )
    problem = _problem_of(agent_id, {"command": list(words)})
    if problem is not None:
        raise InvalidRequestError(f"invalid agent command {text!r}: {problem}")
    known = (agents or {}).get(agent_id) or CATALOGUE.get(agent_id)
    if known is not None:
        return msgspec.structs.replace(known, command=words)
    return to_agent(agent_id, {**UNKNOWN_AGENT, "title": agent_id, "command": words})


def _read_entry(file: Path, agent_id: str, entry: object) -> Agent:
    where = f"agent {agent_id!r}"
    if not is_agent_id(agent_id):
        raise _wrong(
            file,
            f"{where}: an id begins with a letter or digit, and has at most 64 of them, '.', '_' and '-'",
        )
    if not isinstance(entry, dict):
        raise _wrong(file, f"{where}: it must be a table: begin it with [{agent_id}]")
    fields = cast("dict[str, Any]", entry)
    problem = _problem_of(agent_id, fields)
    if problem is not None:
        raise _wrong(file, f"{where}: {problem}")
    default = {**UNKNOWN_AGENT, "title": agent_id}
    try:
        return to_agent(agent_id, {**default, **ENTRIES.get(agent_id, {}), **fields})
    except msgspec.ValidationError as error:
        raise _wrong(file, f"{where}: {_explain(error)}") from error


def _problem_of(agent_id: str, fields: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an entry and cannot be said by its types; None if nothing is."""
    if agent_id == "mock":
        return "the built-in agent cannot be changed: choose another id"
    if "id" in fields:
        return f"field 'id': the name of the table is the id: remove it, allowed are {_fields(Agent)}"
    names: object = fields.get("capabilities", [])
    allowed = AgentCapabilities.__struct_fields__
    if not isinstance(names, list) or any(name not in allowed for name in cast("list[object]", names)):
        return f"field 'capabilities': it must be a list of names, of {', '.join(allowed)}"
    options: object = fields.get("options", {})
    if isinstance(options, dict) and any(name not in _CATEGORIES for name in cast("dict[str, Any]", options)):
        return f"field 'options': allowed are {', '.join(_CATEGORIES)}"
    commands: list[tuple[str, object]] = [("command", fields.get("command"))]
    adapters: object = fields.get("adapters")
    if isinstance(adapters, list):
        commands += [("adapters", each) for each in cast("list[object]", adapters)]
    for name, command in commands:
        problem = _command_problem(command)
        if problem is not None:
            return f"field {name!r}: {problem}"
    defaults: object = fields.get("defaults")
    for name, value in (cast("dict[str, object]", defaults) if isinstance(defaults, dict) else {}).items():
        if not re.fullmatch(r"[^=\0]+", name) or "\0" in str(value):
            return f"field 'defaults': {name!r} is not the name of a variable, or its value has a NUL byte"
    return None


def _command_problem(command: object) -> str | None:
    if not isinstance(command, list) or not all(
        isinstance(word, str) for word in cast("list[object]", command)
    ):
        return None if command is None else "it must be a list of strings, such as ['my-agent', '--acp']"
    words = cast("list[str]", command)
    if not words or not words[0] or any("\0" in word for word in words):
        return "it must begin with a program, such as ['my-agent', '--acp']"
    if "/" in words[0] and not Path(words[0]).is_absolute():
        return f"{words[0]!r} must be a name on PATH or an absolute path"
    return None


def _explain(error: msgspec.ValidationError) -> str:
    """Return what is wrong with a field, and what is allowed there."""
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    field = re.split(r"[.\[]", path)[0]
    known = _TABLES.get(field, Agent)
    text = text.replace("Object contains", "it has the").replace("Object missing", "it lacks the")
    if not path:
        return f"{text}; allowed fields are {_fields(known)}"
    of = f"; its fields are {_fields(known)}" if field in _TABLES else ""
    return f"field {path!r}: {text[0].lower()}{text[1:]}{of}"


def _fields(kind: type[msgspec.Struct]) -> str:
    return ", ".join(name for name in kind.__struct_fields__ if name != "id" or kind is not Agent)


def _wrong(file: Path, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"agents file {str(file)!r}: {what}")
