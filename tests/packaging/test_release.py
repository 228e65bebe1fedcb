"""What has to be true before a tag is published, and that the workflow has no secret and skips no test."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import ROOT
from tests.packaging.conftest import run

WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))
JOBS: dict[str, Any] = WORKFLOW["jobs"]
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a release is made from, with one change that is not released yet."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n<!-- towncrier release notes start -->\n")
    for folder in ("newsfragments", "src/sandbox_agent", "scripts"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/release.py", tmp_path / "scripts")
    (tmp_path / "src/sandbox_agent/__init__.py").touch()
    (tmp_path / "newsfragments/+one.feature.md").write_text("One thing is new.\n")
    return tmp_path


def release(tree: Path, tag: str) -> subprocess.CompletedProcess[str]:
    """Run the check of a tag."""
    command = [sys.executable, str(tree / "scripts/release.py"), tag]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_release_has_the_notes_that_towncrier_made(tree: Path) -> None:
    run(sys.executable, "-m", "towncrier", "build", "--yes", "--version", VERSION, cwd=tree)
    done = release(tree, f"v{VERSION}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "### Features" in done.stdout
    assert "One thing is new." in done.stdout
    assert VERSION not in done.stdout


def test_the_notes_end_where_those_of_the_release_before_begin(tree: Path) -> None:
    before = "## 0.0.9 (2026-01-01)\n\n### Fixes\n\n- An old fix.\n"
    with (tree / "CHANGELOG.md").open("a") as file:
        file.write(f"\n{before}")
    run(sys.executable, "-m", "towncrier", "build", "--yes", "--version", VERSION, cwd=tree)
    notes = release(tree, f"v{VERSION}").stdout
    assert "One thing is new." in notes
    assert "old fix" not in notes


def test_changes_that_are_not_in_the_changelog_stop_a_release(tree: Path) -> None:
    done = release(tree, f"v{VERSION}")
    assert done.returncode != 0
    assert "newsfragments/ still has 1 changes, such as +one.feature.md" in done.stderr


@pytest.mark.parametrize("tag", [VERSION, "v99.0.0", f"v{VERSION}.1"])
def test_a_tag_of_another_version_is_refused(tree: Path, tag: str) -> None:
    done = release(tree, tag)
    assert done.returncode != 0
    assert f"the tag has to be v{VERSION}" in done.stderr


def test_a_changelog_without_the_version_stops_a_release(tree: Path) -> None:
    (tree / "newsfragments/+one.feature.md").unlink()
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\n## {VERSION}1 (2026-01-01)\n")
    done = release(tree, f"v{VERSION}")
    assert done.returncode != 0
    assert "CHANGELOG.md has no heading" in done.stderr


def test_nothing_is_published_before_all_tests_and_no_job_has_a_stored_secret() -> None:
    for job in ("publish", "rehearse"):
        assert set(JOBS[job]["needs"]) == {"build", "test", "try"}
        assert JOBS[job]["permissions"] == {"id-token": "write"}
        (upload,) = [step for step in JOBS[job]["steps"] if "pypi-publish" in step["uses"]]
        assert "password" not in upload.get("with", {})
    assert JOBS["announce"]["needs"] == "publish"
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert [
        name
        for name in JOBS
        if name not in ("publish", "rehearse", "announce") and "permissions" in JOBS[name]
    ] == []
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    assert ".ci/run" in [step.get("run") for step in JOBS["test"]["steps"]]


def test_commands_of_the_workflow_exist() -> None:
    commands = "\n".join(step.get("run", "") for job in JOBS.values() for step in job["steps"])
    targets = set(re.findall(r"make ([\w-]+)", commands))
    assert targets == {"build"}
    assert re.search(r"^build:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for path in re.findall(r"scripts/[\w.]+", commands):
        assert (ROOT / path).is_file()


def test_the_commands_for_the_wheel_run_a_turn(tmp_path: Path) -> None:
    (command,) = re.findall(r"sandbox-agent (run .*)", str(JOBS["try"]["steps"][-1]["run"]))
    assert command == 'run "echo hello" --agent mock'
    said = run(
        Path(sys.executable).parent / "sandbox-agent", "run", "echo hello", "--agent", "mock", cwd=tmp_path
    )
    assert "hello" in said
