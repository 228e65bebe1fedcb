"""Agents of a user's file and of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_agent.agents.catalogue import CATALOGUE, agent_modes, known_agents, use_agents
from sandbox_agent.agents.environment import AgentEnvironment
from sandbox_agent.agents.info import agent_info
from sandbox_agent.agents.install.installer import check_installable
from sandbox_agent.agents.launch import agent_ids, resolve
from sandbox_agent.agents.user_agents import default_file, load_user_agents, parse_command, read_agents
from sandbox_agent.errors import AgentNotInstalledError, InvalidRequestError
from tests.agents.conftest import Machine

FULL = """
[mine]
title = "My agent"
command = ["my-agent", "--acp"]
capabilities = ["permissions", "images"]
credential_env = ["MINE_KEY"]
env = ["MINE_*"]
defaults = { MINE_URL = "http://127.0.0.1:1" }
credential_files = [{ path = ".mine/auth.json", members = ["token"] }]
auth = [{ id = "mine-key", env = ["MINE_KEY"], required = true }]
permission_modes = { ask = ["careful"], allow = ["wild"] }

[mine.options.model]
current = "small"
choices = { small = "Small", large = "Large" }
"""


@pytest.fixture(autouse=True)
def only_the_catalogue() -> Iterator[None]:
    yield
    use_agents({})


@pytest.fixture
def file(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "agents.toml"


def test_an_agent_of_a_file_is_known_everywhere(
    file: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(FULL)
    load_user_agents(file)
    assert agent_ids() == [*CATALOGUE, "mine"]
    with pytest.raises(AgentNotInstalledError, match="`my-agent` is neither on PATH"):
        resolve("mine")
    command = machine.command("my-agent")
    assert resolve("mine").argv == [str(command), "--acp"]

    info = agent_info("mine")
    assert (info.installed, info.credentials_available) == (True, False)
    assert info.capabilities.images
    assert not info.capabilities.tool_calls
    assert agent_info("claude").capabilities == CATALOGUE["claude"].capabilities
    assert info.permission_modes == {
        "ask": ["careful"],
        "accept_edits": [],
        "allow": ["wild"],
        "plan": [],
        "read_only": [],
    }
    monkeypatch.setenv("MINE_KEY", "k")
    monkeypatch.setenv("OTHER", "o")
    assert agent_info("mine").credentials_available
    methods = agent_info("mine").auth_methods or []
    assert [(each.method, each.satisfied) for each in methods] == [("mine-key", True)]
    variables = AgentEnvironment("strict").variables("mine")
    assert {name: variables.get(name) for name in ("MINE_KEY", "MINE_URL", "OTHER")} == {
        "MINE_KEY": "k",
        "MINE_URL": "http://127.0.0.1:1",
        "OTHER": None,
    }
    monkeypatch.setenv("MINE_URL", "http://own")
    assert AgentEnvironment("strict").variables("mine")["MINE_URL"] == "http://own"
    assert known_agents()["mine"].config_options[0]["currentValue"] == "small"


def test_what_a_known_agent_does_not_name_is_as_in_the_catalogue(file: Path) -> None:
    file.write_text('[claude]\ntitle = "Ours"\npermission_modes = { ask = ["plan"] }\n')
    load_user_agents(file)
    ours, theirs = known_agents()["claude"], CATALOGUE["claude"]
    assert (ours.title, ours.npm, ours.adapters) == ("Ours", theirs.npm, theirs.adapters)
    modes = agent_modes("claude")
    assert modes is not None
    assert dict(modes.names) == {"ask": ("plan",)}
    assert list(known_agents()) == list(CATALOGUE)


def test_a_command_starts_the_agent_whatever_else_is_there(file: Path, machine: Machine) -> None:
    machine.launcher("claude")
    command = machine.command("other")
    load_user_agents(None, [f"claude={command} 'two words'"])
    assert resolve("claude").argv == [str(command), "two words"]
    assert agent_info("claude").package is None
    with pytest.raises(InvalidRequestError, match="its command is given"):
        check_installable("claude", None)


def test_a_command_adds_to_the_entry_of_a_file(file: Path, machine: Machine) -> None:
    file.write_text(FULL)
    command = machine.command("other")
    load_user_agents(file, [f"mine={command}", "second=other --acp"])
    assert known_agents()["mine"].title == "My agent"
    assert resolve("mine").argv == [str(command)]
    assert resolve("second").argv == [str(command), "--acp"]


def test_the_default_file_is_read_if_it_is_there(file: Path) -> None:
    load_user_agents(None)
    assert known_agents().keys() == CATALOGUE.keys()
    default_file().parent.mkdir(parents=True)
    default_file().write_text('[mine]\ncommand = ["my-agent"]\n')
    load_user_agents(None)
    assert "mine" in known_agents()
    file.write_text("")
    load_user_agents(file)  # named: it is read instead
    assert "mine" not in known_agents()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", ["is not TOML"]),
        ("a = 1", ["'a'", "must be a table: begin it with [a]"]),
        ("['../a']", ["'../a'", "an id begins with a letter"]),
        ("[mock]", ["'mock'", "choose another id"]),
        ("[a]\nid = 'b'", ["'a'", "'id'", "adapters"]),
        ("[a]\ncomand = ['b']", ["'a'", "unknown field `comand`", "command, "]),
        ("[a]\ncommand = 'b'", ["'a'", "field 'command'", "list of strings"]),
        ("[a]\ncommand = []", ["'a'", "field 'command'", "begin with a program"]),
        ("[a]\ncommand = ['./b']", ["'a'", "field 'command'", "name on PATH or an absolute path"]),
        ("[a]\nadapters = [['bin/b']]", ["'a'", "field 'adapters'", "name on PATH or an absolute path"]),
        ("[a]\ntitle = 1", ["'a'", "field 'title'", "expected `str`"]),
        ("[a]\ncapabilities = ['fly']", ["'a'", "field 'capabilities'", "permissions, questions"]),
        ("[a.options.speed]\ncurrent = 'x'", ["'a'", "field 'options'", "model, mode, thought_level"]),
        ("[a.options.mode]\ncurrent = 'x'", ["'a'", "'options[...]'", "current, choices"]),
        ("[a.npm]\npackages = {x = '1.0.0'}", ["'a'", "field 'npm'", "packages, command, node"]),
        ("[a]\npermission_modes = {never = ['x']}", ["'a'", "permission_modes", "ask"]),
        ("[a]\ndefaults = 'x'", ["'a'", "field 'defaults'", "expected `object`"]),
        ("[a.npm]\npackages = {x = 'latest'}", ["'a'", "field 'npm.packages", "regex"]),
        ("[a.pypi]\nrequirement = '-rx'\nversion = '1.0'", ["'a'", "field 'pypi.requirement", "regex"]),
        (
            "[a.archive]\nname = 'x'\nversion = '../../x'\nplatforms = {}",
            ["'a'", "field 'archive.version", "regex", "name, version, args, platforms"],
        ),
        ("[a]\ndefaults = {'B=C' = 'x'}", ["'a'", "field 'defaults'", "not the name of a variable"]),
        (
            "[claude]\nnpm = {packages = {x = '1.0.0'}}",
            ["'claude'", "field 'npm'", "required field `command`"],
        ),
    ],
)
def test_an_error_names_file_agent_field_and_what_is_allowed(
    file: Path, text: str, expected: list[str]
) -> None:
    file.write_text(text)
    with pytest.raises(InvalidRequestError) as caught:
        read_agents(file)
    message = str(caught.value)
    assert message.startswith(f"agents file {str(file)!r}: ")
    assert [part for part in expected if part not in message] == [], message


def test_a_file_that_cannot_be_read_is_an_error(file: Path) -> None:
    with pytest.raises(InvalidRequestError, match="No such file"):
        load_user_agents(file)
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        load_user_agents(file)
    file.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    with pytest.raises(InvalidRequestError, match="larger than"):
        load_user_agents(file)


@pytest.mark.parametrize("text", ["", "mine", "mine=", "=x", "../x=y", "a='", "mock=x", "a=bin/x"])
def test_a_wrong_command_is_an_error_that_shows_it(file: Path, text: str) -> None:
    with pytest.raises(InvalidRequestError, match="invalid agent command"):
        parse_command(text)


def test_another_version_is_what_an_installation_installs(file: Path) -> None:
    file.write_text(
        '[codex.npm]\ncommand = ["codex-acp"]\nnode = "20"\n'
        'packages = { "@agentclientprotocol/codex-acp" = "2.5.0" }\n'
    )
    load_user_agents(file)
    ours = known_agents()["codex"].npm
    assert ours is not None
    assert ours.version == "2.5.0"
    assert agent_info("codex").pinned_version == "2.5.0"
