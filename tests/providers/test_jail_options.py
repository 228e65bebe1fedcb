"""What ``jail()`` refuses before it starts anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sandbox_agent import Mount, SandboxAgentError, jail


@pytest.fixture(autouse=True)
def bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of that name."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "bwrap").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "platform", "linux")


def test_another_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxAgentError, match="needs Linux"):
        jail()


def test_a_missing_program_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxAgentError, match="apt install bubblewrap"):
        jail()


def test_folders_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxAgentError, match=r"the workspace '.*/none' does not exist"):
        jail(workspace=tmp_path / "none")
    with pytest.raises(SandboxAgentError, match=r"source of a mount '.*/none' does not exist"):
        jail(mounts=[Mount(tmp_path / "none", "/data")])


def test_a_relative_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxAgentError, match="mount target 'data' is relative"):
        jail(mounts=[Mount(tmp_path, "data")])
