"""``sandbox-agent agents``, with an npm that needs no network."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.agents.install.fake_npm import FakeNpm
from tests.cli.conftest import COMMAND, Shell


@pytest.fixture
def npm(shell: Shell, tmp_path: Path) -> FakeNpm:
    """Our node and npm on the command's PATH."""
    folder = tmp_path / "fake-npm"
    folder.mkdir()
    shell.env["PATH"] = f"{folder}:{os.defpath}"
    return FakeNpm(folder)


def listed(shell: Shell) -> dict[str, dict[str, Any]]:
    agents = json.loads(shell.run("agents", "list", "--json").stdout)["agents"]
    return {agent["id"]: agent for agent in agents}


def test_an_agent_is_installed_updated_and_uninstalled(shell: Shell, npm: FakeNpm) -> None:
    assert not listed(shell)["codex"]["installed"]
    done = shell.run("agents", "install", "codex", "--version", "2.5.0")
    assert (done.returncode, done.stderr) == (0, "codex: installing\ncodex: starting\ncodex: installed\n")
    launcher = shell.folder / "data/sandbox-agent/bin/agent_processes/codex-acp"
    assert done.stdout == f"codex 9.9.9 is installed: {launcher}\n"
    again = shell.run("agents", "install", "codex")
    assert again.stdout == f"codex 9.9.9 was installed already: {launcher}\n"

    npm.behave(version="10.0.0")
    done = shell.run("agents", "update", "--json")
    assert json.loads(done.stdout)["artifacts"][0]["version"] == "2.6.0"
    assert listed(shell)["codex"]["version"] == "10.0.0"
    assert "codex       launcher   10.0.0   2.6.0" in shell.run("agents", "list").stdout

    assert shell.run("agents", "uninstall", "codex").stdout == "codex is uninstalled\n"
    assert shell.run("agents", "uninstall", "codex").stdout == "codex was not installed\n"
    assert not launcher.exists()
    done = shell.run("agents", "update", "codex")
    assert (done.returncode, "agents install codex" in done.stderr) == (69, True)


def test_an_agent_is_shown_with_what_it_needs(shell: Shell, npm: FakeNpm) -> None:
    shown = shell.run("agents", "show", "pi").stdout
    assert "pi (Pi)" in shown
    assert "pi-acp 0.0.34" in shown
    assert "Node.js 22.19 or newer" in shown
    assert json.loads(shell.run("agents", "show", "pi", "--json").stdout)["pinnedVersion"] == "0.0.34"
    assert shell.run("agents", "show", "nope").returncode == 64


def test_one_failure_does_not_stop_the_others(shell: Shell, npm: FakeNpm) -> None:
    done = shell.run("agents", "install", "cursor", "gemini", "codex", "--json")
    assert json.loads(done.stdout) | {"artifacts": None} == {
        "agent": "codex",
        "already_installed": False,
        "artifacts": None,
    }
    assert done.returncode == 64
    assert "cursor: invalid request" in done.stderr
    assert "gemini: install failed" in done.stderr
    assert done.stderr.endswith("sandbox-agent: 2 of 3 agents could not be installed\n")


def test_a_failure_has_npms_reason_and_its_exit_code(shell: Shell, npm: FakeNpm) -> None:
    npm.behave(fail="npm error code ETARGET\nnpm error notarget No matching version found for x@1")
    done = shell.run("agents", "install", "codex")
    assert done.returncode == 69
    assert done.stderr.splitlines()[-1] == (
        "sandbox-agent: install failed: npm ci ended with 1: code ETARGET; "
        "notarget No matching version found for x@1"
    )


@pytest.mark.parametrize("words", [["agents", "install"], ["agents", "install", "codex", "--all"]])
def test_either_agents_or_all_are_installed(shell: Shell, words: list[str]) -> None:
    done = shell.run(*words)
    assert (done.returncode, "or use --all" in done.stderr) == (64, True)


def test_the_published_command_installs_and_prints_json(shell: Shell, npm: FakeNpm) -> None:
    done = shell.run("install-agent", "pi", "--agent-version", "0.74.2", "--agent-process-version", "0.0.23")
    document = json.loads(done.stdout)
    assert not document["already_installed"]
    versions = [(artifact["kind"], artifact["version"]) for artifact in document["artifacts"]]
    assert versions == [("agent_process", "0.0.23"), ("native_agent", "0.74.2")]


def test_run_installs_the_agent_that_it_needs(shell: Shell, npm: FakeNpm) -> None:
    refused = shell.run("run", "hello", "--agent", "codex")
    assert (refused.returncode, npm.calls) == (69, [])
    assert "agents install codex" in refused.stderr
    npm.behave(fail="npm error code E404")
    failed = shell.run("run", "hello", "--agent", "codex", env={"SANDBOX_AGENT_REQUIRE_PREINSTALL": ""})
    assert failed.returncode == 69
    assert (
        failed.stderr == "codex: installing\nsandbox-agent: install failed: npm ci ended with 1: code E404\n"
    )
    npm.behave()
    done = shell.run("run", "hello", "--agent", "codex", env={"SANDBOX_AGENT_REQUIRE_PREINSTALL": "false"})
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("codex: installing\ncodex: starting\ncodex: installed\n")


def test_a_bar_is_drawn_on_a_terminal(shell: Shell, npm: FakeNpm) -> None:
    pytest.importorskip("rich")
    leader, follower = pty.openpty()
    written = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            written.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [*COMMAND, "agents", "install", "codex"],
        env={**shell.env, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=shell.folder,
        check=False,
        timeout=60,
    )
    os.close(follower)
    reader.join(30)
    os.close(leader)
    assert done.returncode == 0, written
    assert "━".encode() in written
    assert b"/25" in written or b"codex: starting" in written
    assert not reader.is_alive()


def test_agents_of_a_file_are_listed_shown_and_run(shell: Shell) -> None:
    mock = [sys.executable, "-P", "-m", "sandbox_agent.agents.mock"]
    file = shell.folder / "agents.toml"
    file.write_text(f'[mine]\ntitle = "My agent"\ncommand = {mock!r}\n')
    for given in (["--agents", str(file)], []):
        env = {} if given else {"SANDBOX_AGENT_AGENTS": str(file)}
        assert "mine        on PATH" in shell.run("agents", "list", *given, env=env).stdout
        assert "mine (My agent)" in shell.run("agents", "show", "mine", *given, env=env).stdout
        done = shell.run("run", "echo hello", "--agent", "mine", *given, env=env)
        assert (done.stdout.strip(), done.returncode) == ("hello", 0)
    done = shell.run("agents", "install", "mine", "--agents", file)
    assert (done.returncode, "its command is given" in done.stderr) == (64, True)
    done = shell.run("run", "echo again", "--agent", "b", "--agent-command", f"b={' '.join(mock)}")
    assert (done.stdout.strip(), done.returncode) == ("again", 0)


@pytest.mark.parametrize("command", [["agents", "list"], ["run", "x", "--agent", "mock"], ["server"]])
def test_a_wrong_agents_file_is_one_line(shell: Shell, command: list[str]) -> None:
    file = shell.folder / "agents.toml"
    file.write_text("[mine]\ncomand = ['x']\n")
    done = shell.run(*command, "--agents", file)
    assert (done.returncode, done.stderr.count("\n")) == (64, 1)
    assert "agent 'mine': it has the unknown field `comand`; allowed fields are title, " in done.stderr
