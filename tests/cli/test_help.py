"""What the command says about itself, and what it loads for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sandbox_agent.cli.main import COMMANDS
from tests.cli.conftest import Shell


def loaded_by(statement: str) -> set[str]:
    """Return the modules that are loaded after a statement in a new interpreter."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


LIST = "from sandbox_agent.cli.main import cli\ncli(['--help'], standalone_mode=False)"


@pytest.mark.parametrize(
    "module", ["asyncio", "httpx2", "starlette", "uvicorn", "sqlite3", "rich", "prompt_toolkit"]
)
def test_the_list_of_commands_loads_nothing_heavy(module: str) -> None:
    assert module not in loaded_by(LIST)


@pytest.mark.parametrize("module", ["httpx2", "sandbox_agent.client", "sandbox_agent.providers"])
def test_the_server_loads_nothing_of_the_sdk(module: str) -> None:
    assert module not in loaded_by("import sandbox_agent.cli.server")


@pytest.mark.parametrize("module", ["starlette", "uvicorn", "sandbox_agent.server", "sandbox_agent.agents"])
def test_the_other_commands_load_nothing_of_the_server(module: str) -> None:
    statement = "import sandbox_agent.cli.run, sandbox_agent.cli.demo, sandbox_agent.cli.sessions"
    assert module not in loaded_by(statement)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_listed_command_is_there(name: str, shell: Shell) -> None:
    done = shell.run(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: sandbox-agent {name} ")


def test_the_list_names_every_command_with_what_it_does(shell: Shell) -> None:
    listed = shell.run("--help").stdout
    for name, entry in COMMANDS.items():
        assert f"  {name:<13}  {entry.help}\n" in listed


def test_an_unknown_command_is_a_wrong_command_line(shell: Shell) -> None:
    done = shell.run("sing")
    assert done.returncode == 2
    assert "No such command 'sing'" in done.stderr
