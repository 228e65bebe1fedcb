"""The document of an ACP registry."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox_agent.agents import acp_registry
from sandbox_agent.agents.acp_registry import fetch_registry, read_registry
from sandbox_agent.agents.catalogue import CATALOGUE, known_agents, use_agents
from sandbox_agent.agents.install.npm import current_platform
from sandbox_agent.agents.user_agents import load_user_agents
from tests.agents.conftest import Machine
from tests.support.servers import our_server

MOCK = f"#!/bin/sh\nexec {sys.executable} -P -m sandbox_agent.agents.mock\n".encode()
SHA = "ab" * 32
PLATFORM = {"linux-x64": "linux-x86_64", "linux-arm64": "linux-aarch64"}.get(current_platform(), "")


def entry(agent_id: str, **distribution: Any) -> dict[str, Any]:
    return {
        "id": agent_id,
        "name": agent_id.title(),
        "version": "1.2.3",
        "description": "An agent.",
        "distribution": distribution,
    }


def read(*entries: dict[str, Any]) -> dict[str, Any]:
    return read_registry(json.dumps({"version": "1.0.0", "agents": entries}).encode())


def test_exact_packages_and_archives_with_a_checksum_are_agents() -> None:
    found = read(
        entry("a", npx={"package": "@scope/tool@1.2.3", "args": ["--acp"], "env": {"MODE": "x", "A=B": "y"}}),
        entry("b", uvx={"package": "tool[acp]==2.0", "cmd": "tool-acp"}),
        entry(
            "c",
            binary={
                "linux-x86_64": {
                    "archive": "https://x/c.tgz",
                    "sha256": SHA,
                    "cmd": "./bin/c",
                    "args": ["acp"],
                },
                "darwin-aarch64": {
                    "archive": "https://x/d.tgz",
                    "sha256": SHA,
                    "cmd": "./bin/c",
                    "args": ["acp"],
                },
                "linux-aarch64": {"archive": "https://x/e.tgz", "cmd": "./bin/c"},
                "windows-x86_64": {"archive": "https://x/f.zip", "sha256": SHA, "cmd": "c.exe"},
            },
        ),
    )
    a, b, c = (found[name] for name in "abc")
    assert (a.title, a.npm.packages, a.npm.command) == ("A", {"@scope/tool": "1.2.3"}, ("tool", "--acp"))
    assert a.defaults == {"MODE": "x"}
    assert (b.pypi.requirement, b.pypi.version, b.pypi.command) == ("tool[acp]", "2.0", ("tool-acp",))
    assert sorted(c.archive.platforms) == ["darwin-arm64", "linux-x64"]
    assert c.archive.platforms["linux-x64"].member == "bin/c"
    assert (c.archive.version, c.archive.args) == ("1.2.3", ("acp",))


@pytest.mark.parametrize(
    "wrong",
    [
        entry("a", npx={"package": "tool"}),
        entry("a", npx={"package": "tool@latest"}),
        entry("a", npx={"package": "tool@^1.2.3"}),
        entry("a", npx={"package": "https://example.com/tool.tgz"}),
        entry("a", npx={"package": "../tool@1.0.0 --x"}),
        entry("a", uvx={"package": "tool>=1.0"}),
        entry("a", uvx={"package": "-rtool==1.0"}),
        entry("a", npx={"package": "..@1.0.0"}),
        entry("a", binary={"linux-x86_64": {"archive": "https://x/c.tgz", "cmd": "c"}}),
        entry("a", binary={"linux-x86_64": {"archive": "file:///c.tgz", "sha256": SHA, "cmd": "c"}}),
        entry("a", binary={"linux-x86_64": {"archive": "https://x/c.tgz", "sha256": "ab", "cmd": "c"}}),
        entry("../a", npx={"package": "tool@1.2.3"}),
        entry("mock", npx={"package": "tool@1.2.3"}),
        {"id": 1},
        {},
    ],
    ids=json.dumps,
)
def test_what_is_not_exact_is_left_out_with_a_line_in_the_log(
    wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sandbox_agent.agents")
    assert list(read(wrong, entry("b", npx={"package": "tool@1.2.3"}))) == ["b"]
    assert "is not used" in caplog.text


def test_an_agent_of_the_catalogue_gets_another_version_and_keeps_the_rest() -> None:
    theirs = CATALOGUE["pi"].npm
    assert theirs is not None
    found = read(
        entry("pi-acp", npx={"package": f"{theirs.name}@0.0.99", "args": ["--other"]}),
        entry(
            "goose", binary={"linux-x86_64": {"archive": "https://x/g.tgz", "sha256": SHA, "cmd": "goose"}}
        ),
    )
    ours = found["pi"]
    assert ours.npm.packages == {**theirs.packages, theirs.name: "0.0.99"}
    assert (ours.npm.command, ours.npm.node, ours.env) == (theirs.command, theirs.node, CATALOGUE["pi"].env)
    assert (found["goose"].npm, found["goose"].package.version) == (None, "1.2.3")
    assert found["goose"].credential_env == CATALOGUE["goose"].credential_env


class Registry:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.silent = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/stalls":
                    outer.silent.wait(30)
                data = outer.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    thread = threading.Thread(target=registry.server.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        registry.silent.set()
        registry.server.shutdown()
        registry.server.server_close()
        thread.join()
        use_agents({})


def test_a_registry_that_cannot_be_used_is_a_line_in_the_log(
    registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acp_registry, "REGISTRY_SECONDS", 0.2)
    monkeypatch.setattr(acp_registry, "_MAX_BYTES", 100)
    registry.files |= {"/text": b"text", "/list": b"[]", "/large": b" " * 101}
    for path in ("missing", "text", "list", "large", "stalls"):
        caplog.clear()
        assert fetch_registry(f"{registry.url}/{path}") == {}
        assert len(caplog.records) == 1
        assert f"{registry.url}/{path} is not used, the catalogue is: " in caplog.text
    for url in ("http://user:secret@127.0.0.1:1/", "nonsense", "file:///etc/passwd"):
        caplog.clear()
        assert fetch_registry(url) == {}
        assert "is not used, the catalogue is" in caplog.text
        assert "secret" not in caplog.text


def test_the_agents_file_comes_before_the_registry(
    registry: Registry, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    document = {"agents": [entry(each, npx={"package": f"{each}@1.2.3"}) for each in ("a", "b")]}
    registry.files["/r"] = json.dumps(document).encode()
    file = tmp_path / "agents.toml"
    file.write_text('[a]\ncommand = ["a"]\n')
    load_user_agents(file, registry=f"{registry.url}/r")
    assert (known_agents()["a"].command, known_agents()["b"].package is not None) == (("a",), True)


@pytest.mark.skipif(not PLATFORM, reason="the registry's names of this platform are not those of Linux")
def test_a_server_installs_and_runs_an_agent_of_the_registry(registry: Registry, tmp_path: Path) -> None:
    target = {
        "archive": f"{registry.url}/agent",
        "sha256": hashlib.sha256(MOCK).hexdigest(),
        "cmd": "./agent",
    }
    registry.files["/agent"] = MOCK
    registry.files["/r"] = json.dumps({"agents": [entry("theirs", binary={PLATFORM: target})]}).encode()
    env = {"SANDBOX_AGENT_REQUIRE_PREINSTALL": "", "SANDBOX_AGENT_REGISTRY": f"{registry.url}/r"}
    with our_server(tmp_path, "--store", "memory", env=env) as server:
        info = httpx2.get(f"{server.url}/v1/agents/theirs").json()
        assert (info["installed"], info["package"], info["pinnedVersion"]) == (False, "theirs", "1.2.3")
        created = httpx2.post(f"{server.url}/v1/sessions/s", json={"agent": "theirs"}, timeout=60)
        assert created.status_code == 200, created.text
        assert httpx2.get(f"{server.url}/v1/agents/theirs").json()["installed"]
    with our_server(tmp_path, "--store", "memory", "--agent-registry", f"{registry.url}/missing") as server:
        agents = httpx2.get(f"{server.url}/v1/agents").json()["agents"]
        assert {agent["id"] for agent in agents} >= set(CATALOGUE)
    assert "is not used, the catalogue is: " in server.log.read_text()
