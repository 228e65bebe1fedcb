"""Write ``docs/agents/ID.md``, a page for each agent of the catalogue.

``scripts/agent_pages.py`` writes them from the catalogue and from ``agent_pages.toml``, which has what only
people know.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from sandbox_agent.agents.catalogue import CATALOGUE, Agent, NpmPackages, Option, PypiPackage
from sandbox_agent.engine.permissions import PERMISSION_MODES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/agents"
TEXTS: dict[str, dict[str, Any]] = tomllib.loads(
    (ROOT / "scripts/agent_pages.toml").read_text(encoding="utf-8")
)
# Longer lists of models are given as their number.
SHOWN_MODELS = 12
NAMES = {"model": "Model", "mode": "Mode", "thought_level": "Thought level"}
ASKED = "its requests are decided by kind, in the mode that it has"


def page_of(agent: Agent) -> str:
    """Return the page of an agent."""
    text = TEXTS[agent.id]
    parts = [
        f"# {agent.title}",
        text["about"].strip(),
        "## Install",
        *_install(agent),
        "## Credentials",
        *_credentials(agent),
        *_state(agent),
        "## Modes and permissions",
        *_modes(agent),
        "## Models",
        *_options(agent),
        "## MCP servers",
        text["mcp"],
        "## Notes",
        "\n".join(f"* {note}" for note in text["notes"]),
        "## Capabilities",
        ", ".join(f"`{name}`" for name, value in msgspec.structs.asdict(agent.capabilities).items() if value)
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _install(agent: Agent) -> Iterator[str]:
    package = agent.package
    adapters = " or ".join(f"`{' '.join(words)}`" for words in agent.adapters)
    if package is None:
        yield f"`sandbox-agent` does not install it: put {adapters} on `PATH`, or use a launcher."
        return
    yield f"```sh not-run\nsandbox-agent agents install {agent.id}\n```"
    names = " and ".join(f"`{name}` {version}" for name, version in package.packages.items())
    if isinstance(package, NpmPackages):
        yield f"Installs {names} from npm. Needs Node.js {package.node} or newer."
    elif isinstance(package, PypiPackage):
        also = "".join(f" with `{name}` {version}" for name, version in package.also.items())
        yield f"Installs {names}{also} from PyPI, into a virtual environment of its own."
    locks = files("sandbox_agent.agents.install").joinpath("locks", f"{agent.id}.json")
    if locks.is_file():
        missing: dict[str, dict[str, str]] = msgspec.json.decode(locks.read_bytes())["missing"]
        listed = ", ".join(f"`{platform}`" for platform in missing)
        names = sorted({f"`{name}`" for packages in missing.values() for name in packages})
        but = f", but for the hashes of {', '.join(names)}" if names else ""
        yield f"All dependencies have exact versions and hashes on {listed}{but}."
    if adapters:
        yield f"Without an installation, the server looks for {adapters} on `PATH`."


def _credentials(agent: Agent) -> Iterator[str]:
    sets = [" with ".join(f"`{name}`" for name in names) for names in agent.credential_variables]
    variables = ", ".join(sets)
    stored = ", ".join(f"`~/{file.path}`" for file in agent.credential_files)
    rows = [("any of the variables", variables), ("any of the files", stored)]
    rows += [
        (f"ACP's `authenticate` with `{each.id}`", ", ".join(f"`{name}`" for name in each.env))
        for each in agent.auth
    ]
    rows += [("other variables that it inherits", ", ".join(f"`{name}`" for name in agent.env))]
    found = [f"| {name} | {value} |" for name, value in rows if value]
    yield "\n".join(["| where | names |", "|---|---|", *found])


def _state(agent: Agent) -> Iterator[str]:
    if agent.state:
        names = ", ".join(f"`~/{path}`" for path in agent.state)
        is_xdg = any(path.startswith((".local/", ".config/")) for path in agent.state)
        xdg = (
            " The variables `XDG_DATA_HOME`, `XDG_STATE_HOME` and `XDG_CONFIG_HOME` move them."
            if is_xdg
            else ""
        )
        yield "## Sessions and configuration"
        yield (
            f"It keeps them in {names}.{xdg} If they are lost, the history of a session is "
            "[sent to it](../restore.md) instead."
        )


def _modes(agent: Agent) -> Iterator[str]:
    mode = agent.options.get("mode")
    if mode is not None:
        names = ", ".join(f"`{each}`" for each in mode.choices)
        yield f"Listed until it is installed: {names}. Then it reports its own."
    modes = agent.modes
    if modes is not None and modes.never_asks:
        yield "It never asks: only the [permission mode](../permissions.md) `allow` is accepted."
        return
    if modes is None:
        yield (
            "Its modes are not known as [permission modes](../permissions.md): a mode with the usual name is "
            "chosen if it offers one, and its requests are decided by kind."
        )
        return
    rows = [
        f"| `{name}` | {' or '.join(f'`{each}`' for each in modes.names.get(name, ())) or ASKED} |"
        for name in PERMISSION_MODES
    ]
    yield "\n".join(["| [permission mode](../permissions.md) | mode of the agent |", "|---|---|", *rows])


def _options(agent: Agent) -> Iterator[str]:
    listed = {name: option for name, option in agent.options.items() if name != "mode"}
    for category, option in listed.items():
        yield f"{NAMES[category]}: {_listed(option)}."
    known = "These are listed until it is installed. Then it" if listed else "It"
    yield f"{known} reports its own: see [Models and modes](../models-and-modes.md)."


def _listed(option: Option) -> str:
    if len(option.choices) > SHOWN_MODELS:
        return f"{len(option.choices)} values, `{option.current}` by default"
    return ", ".join(f"`{value}`" for value in option.choices) + f"; `{option.current}` by default"


def pages() -> dict[Path, str]:
    """Return the text of each page by its file. The built-in agent has none."""
    return {FOLDER / f"{agent.id}.md": page_of(agent) for agent in CATALOGUE.values() if agent.id != "mock"}


def main() -> None:
    """Write the pages, and delete those of agents that are gone."""
    wanted = pages()
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.glob("*.md"):
        if file not in wanted and file.name != "matrix.md":
            file.unlink()
    for file, text in wanted.items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
