"""What ``jail()`` refuses before it starts anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent import (
    InvalidRequestError,
    JailProvider,
    Mount,
    SandboxAgentError,
    docker,
    jail,
    local,
    podman,
)


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


@pytest.mark.parametrize("make", [jail, local, docker, podman])
def test_a_misspelled_option_is_refused(make: Any) -> None:
    """It might have been one that isolates."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'netwrok'"):
        make(netwrok="none")


def test_folders_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxAgentError, match=r"the workspace '.*/none' does not exist"):
        jail(workspace=tmp_path / "none")
    with pytest.raises(SandboxAgentError, match=r"source of a mount '.*/none' does not exist"):
        jail(mounts=[Mount(tmp_path / "none", "/data")])


def test_a_relative_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxAgentError, match="mount target 'data' is relative"):
        jail(mounts=[Mount(tmp_path, "data")])


def test_hosts_are_not_allowed_without_a_network() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        jail(network=False, allow_hosts=["example.com"])


def test_an_invalid_host_is_refused() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"'https://example\.com' of the allowed hosts: it is for a host"
    ):
        jail(allow_hosts=["https://example.com"])


def test_local_with_the_isolation_of_a_jail_is_a_jail(tmp_path: Path) -> None:
    assert isinstance(local(isolation="jail", mounts=[Mount(tmp_path, "/data")]), JailProvider)
    with pytest.raises(TypeError, match="workspace"):
        local(workspace=tmp_path)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="host"):
        local(isolation="jail", host="0.0.0.0")  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(ValueError, match="isolation must be 'jail' or None, not 'vm'"):
        local(isolation="vm")  # pyright: ignore[reportCallIssue, reportArgumentType]
