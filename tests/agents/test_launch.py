import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.agents.launch import agent_ids, data_dir, launcher_path, native_path, resolve
from sandbox_agent.errors import AgentNotInstalledError, UnsupportedAgentError
from tests.agents.conftest import Machine


def test_the_layout_is_under_xdg_data_home_when_it_is_set(machine: Machine) -> None:
    assert launcher_path("codex") == machine.data / "sandbox-agent/bin/agent_processes/codex-acp"
    assert native_path("codex") == machine.data / "sandbox-agent/bin/codex"


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_the_layout_is_under_home_when_xdg_data_home_is_unusable(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", value)
    share = "Library/Application Support" if sys.platform == "darwin" else ".local/share"
    assert data_dir() == machine.home / share / "sandbox-agent"


def test_a_launcher_wins_over_the_adapter_on_path(machine: Machine) -> None:
    machine.command("codex-acp")
    launcher = machine.launcher("codex")
    launch = resolve("codex")
    assert (launch.argv, launch.source, launch.path) == ([str(launcher)], "launcher", launcher)
    assert (dict(launch.env), launch.cwd) == ({}, None)


@pytest.mark.parametrize(
    ("agent_id", "command"),
    [(agent.id, adapter) for agent in CATALOGUE.values() for adapter in agent.adapters],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_an_adapter_on_path_is_started_with_its_arguments(
    machine: Machine, agent_id: str, command: tuple[str, ...]
) -> None:
    found = machine.command(command[0])
    launch = resolve(agent_id)
    assert (launch.argv, launch.source, launch.path) == ([str(found), *command[1:]], "path", found)


def test_the_first_of_several_adapters_wins(machine: Machine) -> None:
    machine.command("cursor-agent")
    best = machine.command("cursor-agent-acp")
    assert resolve("cursor").argv == [str(best)]


def test_a_native_binary_in_the_layout_is_started_where_it_speaks_acp(machine: Machine) -> None:
    native = machine.executable(machine.launchers.parent / "opencode")
    machine.command("opencode")
    assert resolve("opencode").argv == [str(native), "acp"]
    machine.executable(machine.launchers.parent / "claude")
    with pytest.raises(AgentNotInstalledError):
        resolve("claude")


def test_the_mock_is_always_installed(machine: Machine) -> None:
    launch = resolve("mock")
    assert (launch.source, launch.path) == ("builtin", None)
    answer = subprocess.run(
        launch.argv,
        input=b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":1}}\n',
        capture_output=True,
        check=True,
    )
    assert b'"protocolVersion":1' in answer.stdout


def test_a_launcher_wins_over_the_built_in_mock_unless_it_is_the_peers(machine: Machine) -> None:
    launcher = machine.launcher("mock")
    assert resolve("mock").argv == [str(launcher)]
    launcher.write_text('#!/usr/bin/env sh\nexec sandbox-agent mock-agent-process "$@"\n')
    assert resolve("mock").source == "builtin"


def test_the_mock_starts_in_a_folder_whose_modules_have_its_names(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    (tmp_path / "sandbox_agent.py").write_text("raise SystemExit('the wrong package')")
    run = subprocess.run(resolve("mock").argv, input=b"", cwd=tmp_path, capture_output=True, check=False)
    assert (run.returncode, run.stderr) == (0, b"")


def test_an_agent_outside_the_catalogue_counts_when_it_has_a_launcher(machine: Machine) -> None:
    launcher = machine.launcher("my-own.agent_2")
    assert resolve("my-own.agent_2").argv == [str(launcher)]
    assert agent_ids() == [*CATALOGUE, "my-own.agent_2"]


def test_a_launcher_of_a_known_agent_is_listed_once(machine: Machine) -> None:
    machine.launcher("claude")
    machine.executable(machine.launchers / "readme.txt")
    machine.executable(machine.launchers / ".hidden-acp")
    (machine.launchers / "folder-acp").mkdir()
    assert agent_ids() == list(CATALOGUE)


def test_the_catalogue_is_listed_when_there_is_no_layout(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nowhere"))
    assert agent_ids() == list(CATALOGUE)


@pytest.mark.parametrize("agent_id", [a for a in CATALOGUE if a != "mock"])
def test_an_agent_that_is_not_installed_says_what_to_do(machine: Machine, agent_id: str) -> None:
    with pytest.raises(AgentNotInstalledError) as caught:
        resolve(agent_id)
    problem = caught.value.to_problem()
    assert (problem["status"], problem["agent"]) == (404, agent_id)
    assert f"agent_processes/{agent_id}-acp" in problem["detail"]
    assert "\n" not in problem["detail"]
    assert str(machine.data) not in problem["detail"]


def test_a_launcher_that_is_not_executable_says_so(machine: Machine) -> None:
    machine.launcher("codex").chmod(0o644)
    machine.command("codex-acp")
    with pytest.raises(AgentNotInstalledError, match="chmod"):
        resolve("codex")


def test_a_folder_that_may_not_be_read_has_no_launcher(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.launcher("codex")
    stat = os.stat

    def refused(path: str | Path, **options: Any) -> os.stat_result:
        if str(path).startswith(str(machine.data)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(AgentNotInstalledError):
        resolve("codex")
    assert resolve("mock").source == "builtin"


@pytest.mark.parametrize(
    "agent_id",
    ["nope", "", ".", "..", "../evil", "a/b", "/bin/sh", "a\\b", "a\0b", "a\nb", "-x", "x" * 300, "ü"],
)
def test_an_agent_that_is_unknown_is_unsupported(machine: Machine, agent_id: str) -> None:
    machine.executable(machine.launchers.parent / "evil-acp")
    with pytest.raises(UnsupportedAgentError) as caught:
        resolve(agent_id)
    assert caught.value.to_problem() == {
        "type": "urn:sandbox-agent:error:unsupported_agent",
        "title": "Unsupported Agent",
        "status": 400,
        "detail": f"unsupported agent: {agent_id}; known here: {', '.join(agent_ids())}",
        "agent": agent_id,
    }
