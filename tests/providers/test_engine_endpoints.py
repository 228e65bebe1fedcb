"""Finding the engine, and what is said where it cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from sandbox_agent import Mount, SandboxAgentError, docker, podman
from sandbox_agent.providers.engine.api import EngineApi, split_frames
from sandbox_agent.providers.engine.container import EngineOptions, Secret
from sandbox_agent.providers.engine.endpoints import EngineName, find_endpoint
from sandbox_agent.providers.engine.images import split_tag

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without an engine's files, and no variables."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CONFIG", "CONTAINER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def test_the_variable_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://engine.example:2375")
    monkeypatch.setenv("CONTAINER_HOST", "unix:///run/other.sock")
    found = find_endpoint("docker")
    assert (found.host, found.port, found.path, found.is_local) == ("engine.example", 2375, None, False)
    assert find_endpoint("podman").path == Path("/run/other.sock")
    assert find_endpoint("docker", "tcp://127.0.0.1:1234").is_local


def test_the_context_of_the_docker_command_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / ".docker/contexts/meta" / hashlib.sha256(b"mine").hexdigest()
    folder.mkdir(parents=True)
    meta = {"Name": "mine", "Endpoints": {"docker": {"Host": "unix:///mine.sock"}}}
    (folder / "meta.json").write_text(json.dumps(meta))
    (home / ".docker/config.json").write_text('{"currentContext": "mine"}')
    assert find_endpoint("docker").path == Path("/mine.sock")
    monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    with pytest.raises(SandboxAgentError, match="context 'gone' cannot be read"):
        find_endpoint("docker")


@pytest.mark.skipif(sys.platform != "linux", reason="the places are those of Linux")
def test_the_sockets_of_engines_are_found(home: Path) -> None:
    system = {"docker": Path("/var/run/docker.sock"), "podman": Path("/run/podman/podman.sock")}
    hints = {
        "docker": "DOCKER_HOST is not set.*systemctl start docker",
        "podman": r"--user start podman\.socket",
    }
    own = {"docker": home / "run/docker.sock", "podman": home / "run/podman/podman.sock"}
    names: tuple[EngineName, ...] = ("docker", "podman")
    for name in names:
        if not system[name].exists():
            with pytest.raises(SandboxAgentError, match=hints[name]):
                find_endpoint(name)
        own[name].parent.mkdir(exist_ok=True, parents=True)
        own[name].touch()
        is_first = system[name].exists() and (name == "docker" or os.geteuid() == 0)
        assert find_endpoint(name).path == (system[name] if is_first else own[name])


@pytest.mark.parametrize("url", ["ssh://host", "unix://", "tcp://", "engine"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(SandboxAgentError, match="is neither unix:///path nor tcp://host:port"):
        find_endpoint("docker", url)


async def test_an_engine_that_does_not_listen_is_named_with_what_starts_it(home: Path) -> None:
    with pytest.raises(SandboxAgentError, match=r"docker does not listen at .*systemctl start docker"):
        await EngineApi("docker", f"unix://{home}/none.sock").inspect("x")
    with pytest.raises(SandboxAgentError, match=r"podman does not listen at tcp://127\.0\.0\.1:1"):
        await EngineApi("podman", "tcp://127.0.0.1:1").inspect("x")


async def test_a_sandbox_of_an_engine_elsewhere_is_refused() -> None:
    with pytest.raises(SandboxAgentError, match="is another machine"):
        await docker(host="tcp://engine.example:2375").create()
    with pytest.raises(SandboxAgentError, match="need an engine on this Linux machine"):
        await docker(host="tcp://127.0.0.1:2375", network="none").create()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lots"}, "memory must be a size"),
        ({"network": "host"}, "would share a network"),
        ({"network": "container:x"}, "would share a network"),
        ({"user": "agent"}, "user must be numbers"),
        ({"cpus": 0}, "greater than 0"),
        ({"max_lifetime": 0}, "max_lifetime must be greater than 0"),
        ({"env": {"A B": "x"}}, "cannot be set in a container"),
        ({"env": {"A": "x\0"}}, "cannot be set in a container"),
        ({"pull": "often"}, "pull must be"),
        ({"pause": "sleep"}, "pause must be"),
    ],
)
def test_an_invalid_option_is_named(options: EngineOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        podman(**options)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxAgentError, match=r"workspace .* does not exist"):
        docker(workspace=tmp_path / "none")
    with pytest.raises(SandboxAgentError, match=r"source of a mount .* does not exist"):
        docker(mounts=[Mount(tmp_path / "none", "/none")])


@pytest.mark.parametrize(
    ("image", "repository", "tag"),
    [
        ("alpine", "alpine", "latest"),
        ("localhost:5000/team/image", "localhost:5000/team/image", "latest"),
        ("localhost:5000/team/image:1", "localhost:5000/team/image", "1"),
        ("team/image@sha256:abc", "team/image", "sha256:abc"),
    ],
)
def test_the_tag_of_an_image_is_after_its_name(image: str, repository: str, tag: str) -> None:
    assert split_tag(image) == (repository, tag)


def test_output_is_taken_out_of_its_frames() -> None:
    frames = b"\1\0\0\0\0\0\0\2ab\2\0\0\0\0\0\0\1c"
    assert split_frames(frames) == b"abc"


def test_the_token_of_a_secret_is_found_again() -> None:
    secret = Secret.make({"A": "token=wrong"})
    assert Secret(secret.text).token == secret.token
    assert len(secret.token) >= 32
    assert Secret.make({}).token != secret.token
