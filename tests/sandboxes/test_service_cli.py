"""The command line with sandboxes at a service."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sandbox_agent import E2BProvider, e2b
from sandbox_agent.cli.main import cli
from tests.sandboxes.fakes.e2b import FakeE2B
from tests.support import shell_agent
from tests.support.servers import free_port

pytest.importorskip("e2b", reason="E2B NOT TESTED: its SDK is not installed")
pytestmark = pytest.mark.sandboxes

Run = Callable[..., Result]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeE2B]:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sandbox-agent").symlink_to(Path(sys.executable).with_name("sandbox-agent"))
    with FakeE2B(tmp_path / "home", programs) as fake:
        yield fake


@pytest.fixture
def run(service: FakeE2B, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    port = free_port()
    project = tmp_path / "project"
    project.mkdir()
    (project / "file").write_text("of this machine")

    def make(template: str | None = None, **options: Any) -> E2BProvider:
        return e2b(template, client=service.client, home=str(service.home), agent_port=port, **options)

    monkeypatch.setattr("sandbox_agent.providers.e2b.e2b", make)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.chdir(project)

    def run_command(*words: str) -> Result:
        return CliRunner().invoke(cli, list(words))

    return run_command


def test_a_prompt_runs_with_a_copy_of_the_working_directory(run: Run, service: FakeE2B) -> None:
    shell = f"shell={sys.executable} {shell_agent.__file__}"
    options = ["--agent", "shell", "--agent-command", shell, "--sandbox", "e2b", "--image", "my-template"]
    done = run("run", "cat file; echo made > new", *options)
    assert done.exit_code == 0, done.stderr
    assert "of this machine" in done.stdout
    created = service.requests[0][2]
    assert created["templateID"] == "my-template"
    assert created["envVars"].get("ANTHROPIC_API_KEY") is None  # it is not known for this agent
    assert service.boxes == {}


def test_a_sandbox_is_kept_looked_into_and_destroyed(run: Run, service: FakeE2B) -> None:
    done = run("run", "echo hello", "--agent", "mock", "--sandbox", "e2b", "--keep")
    assert done.exit_code == 0, done.stderr
    [raw_id] = service.boxes
    sandbox_id = f"e2b/{raw_id}"
    assert f"sandbox {sandbox_id} is kept" in done.stderr
    listed = run("sandboxes", "list", "--provider", "e2b", "--json")
    assert f'"id":"{sandbox_id}"' in listed.stdout
    assert '"state":"running"' in listed.stdout
    assert "listens on" in run("sandboxes", "logs", sandbox_id).stdout
    ended = run("sandboxes", "exec", sandbox_id, "--", "sh", "-c", "cat file; exit 3")
    assert (ended.exit_code, ended.stdout) == (3, "of this machine")
    assert run("sandboxes", "destroy", sandbox_id).exit_code == 0
    assert service.boxes == {}


def test_an_agent_is_installed_in_the_sandbox_with_its_keys(run: Run, service: FakeE2B) -> None:
    npm = service.programs / "npm"
    npm.write_text("#!/bin/sh\nexit 1\n")
    npm.chmod(0o755)
    done = run("run", "hello", "--agent", "claude", "--sandbox", "e2b")
    assert done.exit_code != 0
    assert "agents could not be installed: claude" in str(done.exception or done.stderr)
    assert service.requests[0][2]["envVars"]["ANTHROPIC_API_KEY"] == "sk-secret"
    assert service.boxes == {}
