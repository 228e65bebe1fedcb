"""``sandbox-agent credentials``: what is found and how it is shown, beside the published command."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent.agents.credentials import Credential, find_credentials
from tests.cli.conftest import Shell
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip, rust_server

CLAUDE_KEY = "sk-ant-file-0123456789"
LOGIN = {"accessToken": "oat-0123456789abcdef"}
FILES: dict[str, dict[str, dict[str, Any]]] = {
    "nothing": {},
    "a key of Claude Code": {".claude.json": {"primaryApiKey": CLAUDE_KEY}},
    "a login of Claude Code": {".claude/.credentials.json": {"claudeAiOauth": LOGIN}},
    "both": {
        ".claude.json": {"primaryApiKey": CLAUDE_KEY},
        ".claude/.credentials.json": {"claudeAiOauth": LOGIN},
    },
    "a key of Codex": {".codex/auth.json": {"OPENAI_API_KEY": "sk-codex-0123456789"}},
    "a login of Codex": {".codex/auth.json": {"tokens": {"access_token": "codex-0123456789abc"}}},
    "OpenCode": {
        ".local/share/opencode/auth.json": {
            "anthropic": {"type": "api", "key": "sk-opencode-0123456789"},
            "groq": {"type": "api", "key": "gsk-0123456789abcdef"},
        }
    },
}
ENVIRONMENTS = [{}, {"ANTHROPIC_API_KEY": "sk-ant-env-0123456789"}, {"CODEX_API_KEY": "sk-env-0123456789"}]


def put(home: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, content in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


@pytest.fixture
def home(tmp_path: Path, shell: Shell) -> Path:
    for name in list(shell.env):
        if name.startswith(("ANTHROPIC", "CLAUDE", "OPENAI", "CODEX")):
            del shell.env[name]
    home = tmp_path / "home"
    home.mkdir()
    shell.env["HOME"] = str(home)
    return home


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("variables", ENVIRONMENTS, ids=lambda variables: "".join(variables) or "no variable")
@pytest.mark.soak_with("ANTHROPIC_API_KEY", "CODEX_API_KEY")
def test_it_finds_what_the_published_command_finds(
    shell: Shell, home: Path, files: str, variables: dict[str, str]
) -> None:
    npm_or_skip(PUBLISHED_SERVER, "the credentials that the published command finds")
    put(home, FILES[files])
    for words in (["extract"], ["extract", "--reveal"], ["extract", "--no-oauth"], ["extract-env", "-e"]):
        ours = shell.run("credentials", *words, env=variables)
        peer = subprocess.run(
            [rust_server(), "credentials", *words],
            env={**shell.env, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ours.stderr == ""
        if words[0] == "extract":
            assert json.loads(ours.stdout) == json.loads(peer.stdout)
        else:
            assert set(ours.stdout.splitlines()) >= set(peer.stdout.splitlines())


def test_keys_are_shown_in_part_unless_they_are_asked_for(shell: Shell, home: Path) -> None:
    put(home, FILES["both"])
    table = shell.run("credentials", "list").stdout
    assert table.splitlines()[0].split() == ["PROVIDER", "SOURCE", "TYPE", "KEY", "EXPIRES"]
    assert CLAUDE_KEY not in table
    assert "sk-a...6789" in table
    assert CLAUDE_KEY in shell.run("credentials", "list", "--reveal").stdout
    assert shell.run("credentials", "extract", "-a", "claude").stdout == "sk-a...6789\n"
    assert shell.run("credentials", "extract", "-p", "anthropic", "-r").stdout == f"{CLAUDE_KEY}\n"


def test_what_is_not_there_is_an_error(shell: Shell, home: Path) -> None:
    for words in (["list"], ["extract", "-a", "codex"], ["extract", "-p", "groq"]):
        done = shell.run("credentials", *words)
        assert done.returncode != 0
        assert done.stderr.startswith("sandbox-agent: no credentials were found: set an API key")
    done = shell.run("credentials", "extract", "-a", "codex", "-p", "anthropic")
    assert "agent codex uses only the provider openai" in done.stderr


def test_opencode_with_several_providers_needs_a_choice(shell: Shell, home: Path) -> None:
    put(home, FILES["OpenCode"])
    done = shell.run("credentials", "extract", "-a", "opencode")
    assert "choose one of anthropic, groq with --provider" in done.stderr
    done = shell.run("credentials", "extract", "-a", "opencode", "-p", "groq", "-r")
    assert done.stdout == "gsk-0123456789abcdef\n"


def test_a_login_that_has_expired_is_listed_and_not_used(shell: Shell, home: Path) -> None:
    put(home, {".claude/.credentials.json": {"claudeAiOauth": {**LOGIN, "expiresAt": 1_000_000}}})
    assert "1970-01-01 00:16 (expired)" in shell.run("credentials", "list").stdout
    assert json.loads(shell.run("credentials", "extract").stdout)["anthropic"] is None


@pytest.mark.parametrize(
    ("login", "expires_at"),
    [
        ({"expiresAt": 2_000}, 2.0),
        ({"expiresAt": "1970-01-01T00:00:05Z"}, 5.0),
        ({"expiresAt": "soon"}, None),
        ({"expiresAt": [1]}, None),
        ({"expiresAt": 2_000, "refreshToken": "r"}, None),  # its agent renews it
        ({}, None),
    ],
)
def test_the_expiry_of_a_login(tmp_path: Path, login: dict[str, Any], expires_at: float | None) -> None:
    put(tmp_path, {".claude/.credentials.json": {"claudeAiOauth": {**LOGIN, **login}}})
    (found,) = find_credentials(tmp_path, {})
    assert found.expires_at == expires_at


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"claudeAiOauth": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_holds_nothing(tmp_path: Path, content: bytes) -> None:
    for name in (".claude.json", ".codex/auth.json", ".amp/config.json", ".claude/.credentials.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert find_credentials(tmp_path, {}) == []


def test_what_has_expired_comes_last(tmp_path: Path) -> None:
    login = {**LOGIN, "expiresAt": (time.time() - 1) * 1000}
    put(
        tmp_path,
        {
            ".claude/.credentials.json": {"claudeAiOauth": login},
            ".local/share/opencode/auth.json": {
                "anthropic": {"type": "oauth", "access": "oat-valid", "expires": (time.time() + 60) * 1000}
            },
        },
    )
    valid, expired = find_credentials(tmp_path, {})
    assert (valid.api_key, valid.is_expired) == ("oat-valid", False)
    assert expired.is_expired


def test_a_short_key_is_not_shown_at_all() -> None:
    key = Credential(provider="openai", source="codex", auth_type="api_key", api_key="short-key-12")
    assert key.redacted == "***"
