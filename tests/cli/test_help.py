"""What the command says about itself, and what it loads for that."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

from sandbox_agent.cli.main import COMMANDS
from tests.cli.conftest import Shell


@cache
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


# What few servers or requests need is imported for them.
SERVES = """
import asyncio
from sandbox_agent.cli.main import cli
from sandbox_agent.server.app import Application
from sandbox_agent.server.config import ServerConfig
from sandbox_agent.server.serve import _http_protocol
cli(["server", "--help"], standalone_mode=False)
_http_protocol()
async def serve():
    async with Application(ServerConfig(store="memory")).running():
        pass
asyncio.run(serve())
"""


@pytest.mark.parametrize(
    "module",
    [
        *("asyncpg", "cryptography", "jinja2", "markdown_it", "opentelemetry", "pyte", "redis", "rich"),
        *("httpx2", "importlib.metadata", "starlette.routing", "websockets", "zipfile"),
        *("starlette.middleware.cors", "sandbox_agent.agents.install.installer", "sandbox_agent.egress"),
        *("sandbox_agent.server.http.openapi", "sandbox_agent.server.transcripts.transcript_builder"),
    ],
)
def test_a_server_that_has_started_has_loaded_only_what_all_servers_need(module: str) -> None:
    assert module not in loaded_by(SERVES)


def test_the_modules_of_a_command_are_not_searched_for_garbage() -> None:
    code = (
        "import gc\nfrom sandbox_agent.cli.main import cli\n"
        "cli(['server', '--help'], standalone_mode=False)\nprint(gc.get_freeze_count(), gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frozen, enabled = done.stdout.split()[-2:]
    assert int(frozen) > 10_000
    assert enabled == "True"


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
