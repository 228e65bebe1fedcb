"""What users can reach is in the docs: routes, options, names, drivers, errors, agents, the mock."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import sandbox_agent
from sandbox_agent import SessionPersistDriver
from sandbox_agent.agents.catalogue import CATALOGUE, Agent
from sandbox_agent.agents.mock.commands import COMMANDS as MOCK_COMMANDS
from sandbox_agent.cli.main import cli
from sandbox_agent.cli.run import EXIT_CODES
from sandbox_agent.errors import TABLE
from sandbox_agent.server.app import OPERATIONS
from sandbox_agent.server.http.operations import Operation
from tests.docs.pages import PAGES, ROOT, text_of

Words = tuple[str, ...]


def commands(command: click.Command, path: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    """Return every command with its path."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


OPTIONS = [
    pytest.param(path, option, id=" ".join((*path, option.opts[-1])))
    for path, command in commands(cli)
    for option in command.params
    if isinstance(option, click.Option)
]


def long_name(option: click.Option) -> str:
    return next(name for name in option.opts if name.startswith("--"))


@pytest.mark.parametrize(("path", "option"), OPTIONS)
def test_an_option_is_on_the_page_of_its_command(path: Words, option: click.Option) -> None:
    page = text_of("docs/server.md" if path[:1] == ("server",) else "docs/cli.md")
    section = page
    if path[:1] in {("run",), ("sessions",), ("demo",)}:
        section = next(
            part for part in re.split(r"^## ", page, flags=re.MULTILINE) if part.startswith(path[0])
        )
    assert f"`{long_name(option)}`" in section or f" {long_name(option)}`" in section
    for short in option.opts:
        assert short.startswith("--") or path == () or f"`{short}`" in section
    for variable in [option.envvar] if isinstance(option.envvar, str) else []:
        assert f"`{variable}`" in section


@pytest.mark.parametrize(("path", "option"), OPTIONS)
def test_an_option_explains_itself_in_help(path: Words, option: click.Option) -> None:
    assert option.help or isinstance(option.type, click.Choice), f"{path}: {long_name(option)}"


def route_of(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


@pytest.mark.parametrize("operation", OPERATIONS, ids=route_of)
def test_a_route_is_in_the_docs(operation: Operation) -> None:
    assert f"| `{route_of(operation)}` |" in text_of("docs/http.md")


def test_the_docs_name_no_route_that_is_not_there() -> None:
    documented = set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", text_of("docs/http.md"), flags=re.MULTILINE))
    assert documented == {route_of(operation) for operation in OPERATIONS}


@pytest.mark.parametrize("name", sandbox_agent.__all__)
def test_a_public_name_is_in_the_docs(name: str) -> None:
    assert re.search(rf"`(?:[^`\n]*[^\w`])?{name}\b", text_of("docs/reference.md"))


def test_every_driver_is_in_the_docs() -> None:
    public = [getattr(sandbox_agent, name) for name in sandbox_agent.__all__]
    drivers = [kind for kind in public if isinstance(kind, type) and issubclass(kind, SessionPersistDriver)]
    concrete = [kind.__name__ for kind in drivers if kind is not SessionPersistDriver]
    assert concrete
    assert [name for name in concrete if f"| `{name}(" not in text_of("docs/persistence.md")] == []


def test_the_table_of_errors_is_that_of_the_code() -> None:
    rows = re.findall(
        r"^\| `(\w+Error)` \| (?:`(\w+)`)? ?\| (\d*) ?\| (\d+) \| (yes|no) \| \S.* \|$",
        text_of("docs/errors.md"),
        flags=re.MULTILINE,
    )
    expected = [
        (
            row.error.__name__,
            row.name or "",
            str(row.status or ""),
            str(row.exit_code),
            "yes" if row.retryable else "no",
        )
        for row in TABLE
    ]
    assert rows == expected


def test_the_exit_codes_of_run_are_in_the_docs() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|$", text_of("docs/cli.md"), flags=re.MULTILINE))
    assert rows == {reason: str(code) for reason, code in EXIT_CODES.items()}


@pytest.mark.parametrize("agent", CATALOGUE.values(), ids=lambda agent: agent.id)
def test_an_agent_is_in_the_docs_with_its_commands_and_keys(agent: Agent) -> None:
    page = text_of("docs/agents.md")
    assert row_of(agent) in page.splitlines(), f"docs/agents.md needs:\n{row_of(agent)}"
    names = ", ".join(f"`{name}`" for name in agent.env)
    assert f"| `{agent.id}` | {names} |" in page


@pytest.mark.parametrize("agent", [agent for agent in CATALOGUE if agent != "mock"])
def test_an_agent_has_an_up_to_date_page_which_is_in_the_contents(agent: str) -> None:
    wanted = {file.name: text for file, text in agent_pages().items()}
    assert text_of(f"docs/agents/{agent}.md") == wanted[f"{agent}.md"], "run scripts/agent_pages.py"
    assert f'{{ "{CATALOGUE[agent].title}" = "agents/{agent}.md" }}' in text_of("zensical.toml")


def test_there_is_no_page_of_another_agent() -> None:
    pages = {file.name for file in agent_pages()} | {"matrix.md"}
    assert {file.name for file in (ROOT / "docs/agents").iterdir()} == pages


def agent_pages() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("agent_pages", ROOT / "scripts/agent_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[Path, str] = module.pages()
    return pages


def row_of(agent: Agent) -> str:
    """Return the agent's row in the table of docs/agents.md."""
    package = agent.package
    installs = [] if package is None else [f"`{name}` {package.packages[name]}" for name in package.packages]
    needs = "" if package is None else "Python"
    if agent.npm is not None:
        needs = f"Node.js {agent.npm.node}"
    commands = " or ".join(f"`{' '.join(words)}`" for words in agent.adapters)
    keys = ", ".join(" with ".join(f"`{name}`" for name in names) for names in agent.credential_variables)
    built_in = "built in" if agent.id == "mock" else "none"
    title = agent.title if agent.id == "mock" else f"[{agent.title}](agents/{agent.id}.md)"
    cells = [f"`{agent.id}`", title, ", ".join(installs) or built_in, needs or "", commands or "", keys]
    return f"| {' | '.join(cell or 'none' for cell in cells)} |"


@pytest.mark.parametrize("name", MOCK_COMMANDS)
def test_a_command_of_the_mock_is_in_the_docs(name: str) -> None:
    assert f"| `{name}` | {MOCK_COMMANDS[name][1]} |" in text_of("docs/agents.md")


def test_every_variable_of_the_environment_is_in_the_docs() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    names = {name for source in sources for name in re.findall(r'"(SANDBOX_AGENT_[A-Z_]+)"', source)}
    assert names
    docs = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in sorted(names) if f"`{name}`" not in docs] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file_that_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
