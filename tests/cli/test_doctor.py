"""``sandbox-agent doctor``: what is checked on this machine, and of a running server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.cli.conftest import Shell
from tests.support.servers import free_port, our_server, put_launcher

TOKEN = "s3cret-token-0123456789"
KEY = "sk-ant-0123456789abcdef"

Findings = dict[str, list[dict[str, str]]]


@pytest.fixture
def home(shell: Shell) -> Path:
    """A home without anything, on a machine without settings; a working ``claude`` is installed."""
    home = shell.folder / "home"
    home.mkdir()
    put_launcher(shell.folder / "data", "claude", [sys.executable, "-m", "sandbox_agent.agents.mock"])
    (shell.folder / "data/sandbox-agent").chmod(0o700)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        shell.env.pop(name, None)
    shell.env |= {"HOME": str(home), "ANTHROPIC_API_KEY": KEY}
    return home


def examined(shell: Shell, *words: str, code: int = 0, env: dict[str, str] | None = None) -> Findings:
    port = () if "--url" in words else ("--port", str(free_port()))
    done = shell.run("doctor", "--json", *port, *words, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    document = json.loads(done.stdout)
    found: Findings = {}
    for finding in document["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    assert document["problems"] == sum(each["status"] == "problem" for each in document["findings"])
    for finding in document["findings"]:
        assert ("advice" in finding) is (finding["status"] != "ok")
    return found


def test_a_machine_that_has_what_is_needed(shell: Shell, home: Path) -> None:
    found = examined(shell)
    names = ("python", "extras", "data folder", "store", "disk", "port", "git", "agent claude", "credentials")
    for name in names:
        assert {each["status"] for each in found[name]} == {"ok"}, found[name]
    assert found["agent claude"][0]["message"].startswith("1.0.0, ")
    assert "server" in found["extras"][0]["message"].split(", ")


def test_what_is_shown_has_a_line_for_each_finding_and_no_secret(shell: Shell, home: Path) -> None:
    env = {"SANDBOX_AGENT_STORE": "postgres://me:secret-word@db/x", "HTTPS_PROXY": "http://u:proxy-word@p:1"}
    done = shell.run("doctor", "--port", str(free_port()), env=env)
    assert done.returncode == 0
    assert "ok       credentials: anthropic (api_key of environment)\n" in done.stdout
    assert "ok       store: postgres://db/x: not connected to\n" in done.stdout
    assert "ok       proxy: HTTPS_PROXY\n" in done.stdout
    for secret in (KEY, "secret-word", "proxy-word"):
        assert secret not in done.stdout + done.stderr


def test_an_agent_that_does_not_answer_is_a_problem(shell: Shell, home: Path) -> None:
    put_launcher(shell.folder / "data", "codex", ["sh", "-c", "echo broken library >&2; exit 3"])
    found = examined(shell, code=1)
    assert found["agent codex"][0]["status"] == "problem"
    assert "broken library" in found["agent codex"][0]["message"]
    assert "--reinstall codex" in found["agent codex"][0]["advice"]
    assert found["agent claude"][0]["status"] == "ok"


def test_missing_credentials_are_a_warning(shell: Shell, home: Path) -> None:
    del shell.env["ANTHROPIC_API_KEY"]
    found = examined(shell)
    assert found["credentials"][0]["status"] == "warning"
    assert found["agent claude"][0]["status"] == "warning"
    assert "ANTHROPIC_API_KEY" in found["agent claude"][0]["advice"]
    (home / ".claude").mkdir()
    login = {"claudeAiOauth": {"accessToken": "oat-0123456789abcdef", "expiresAt": 1000}}
    (home / ".claude/.credentials.json").write_text(json.dumps(login))
    assert "expired" in examined(shell)["credentials"][0]["message"]


def test_a_damaged_store_and_an_open_folder_are_problems(shell: Shell, home: Path) -> None:
    folder = shell.folder / "data/sandbox-agent"
    (folder / "server.db").write_bytes(b"no database" * 500)
    (folder / "server.db").chmod(0o644)
    folder.chmod(0o777)
    found = examined(shell, code=1)
    assert "not a database" in found["store"][0]["message"]
    assert [each["status"] for each in found["data folder"]] == ["problem", "warning"]
    assert f"chmod 600 '{folder}/server.db'" in found["data folder"][1]["advice"]
    (shell.folder / "file").touch()
    found = examined(shell, "--store", f"sqlite:{shell.folder}/file/x.db", code=1)
    assert "is not a folder" in found["store"][0]["message"]
    found = examined(shell, "--store", "mysql://x", code=1)
    assert found["store"][0]["status"] == "problem"


def test_a_certificate_that_is_missing_is_a_problem(shell: Shell, home: Path) -> None:
    env = {"NODE_EXTRA_CA_CERTS": str(home / "missing.pem")}
    found = examined(shell, code=1, env=env)
    assert "missing.pem" in found["certificates"][0]["message"]


def test_a_file_of_agents_that_is_invalid_is_a_problem(shell: Shell, home: Path) -> None:
    (home / "agents.toml").write_text("x")
    found = examined(shell, "--agents", str(home / "agents.toml"), code=1)
    assert found["agents"][0]["status"] == "problem"


def test_a_port_of_another_program_is_a_warning_and_that_of_a_server_is_not(shell: Shell, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = shell.run("doctor", "--json", "--port", str(other.getsockname()[1]))
        assert '"another program has port' in done.stdout
    with our_server(shell.folder) as server:
        done = shell.run("doctor", "--json", "--port", str(server.port))
        assert '"a server answers on port' in done.stdout
        # The store is in use, which is no problem.
        assert done.returncode == 0


AS_ANOTHER_USER = """
import os, sys
from sandbox_agent.cli.doctor_machine import check_folder, check_store
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
store = f"sqlite:{os.environ['XDG_DATA_HOME']}/sandbox-agent/x.db"
print(*[each.status for check in (check_folder(), check_store(store)) for each in check])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root starts a program as another user")
def test_folders_that_this_user_may_not_write_are_problems() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sandbox-agent").mkdir(0o755)
        Path(folder).chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER_USER],
            env={**os.environ, "XDG_DATA_HOME": folder},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout.split()[:2] == ["problem", "problem"], done.stderr


def test_a_check_that_the_system_refuses_is_a_problem_and_the_others_are_made(
    shell: Shell, home: Path
) -> None:
    found = examined(shell, code=1, env={"XDG_DATA_HOME": f"/{'x' * 300}"})
    assert "can't be read: " in found["data folder"][0]["message"]
    assert "proxy" in found


def test_a_running_server_is_checked(shell: Shell) -> None:
    with our_server(shell.folder, token=TOKEN) as server:
        env = {"SANDBOX_AGENT_TOKEN": TOKEN}
        found = examined(shell, "--url", server.url, env=env)
        assert {each["status"] for group in found.values() for each in group} == {"ok"}
        assert set(found) == {"server", "clock", "authentication", "version", "agents of the server"}
        assert "mock" in found["agents of the server"][0]["message"]
        assert "needs a token" in examined(shell, "--url", server.url, code=1)["authentication"][0]["message"]
        wrong = examined(shell, "--url", server.url, "--token", "another-token", code=1)
        assert "wrong" in wrong["authentication"][0]["message"]
    gone = examined(shell, "--url", server.url, code=1)
    assert "can't be reached" in gone["server"][0]["message"]
    assert shell.run("doctor", "--url", "nowhere").returncode == 2


def test_a_server_without_a_token_is_a_warning(shell: Shell) -> None:
    with our_server(shell.folder) as server:
        found = examined(shell, "--url", server.url)
        assert found["authentication"][0]["status"] == "warning"


class _Old(BaseHTTPRequestHandler):
    """A server of another version whose clock is an hour behind and whose store fails."""

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/v1/health": {"status": "ok", "store": "degraded", "reason": "the disk is full"},
            "/v1/agents": {"agents": []},
            "/v1/openapi.json": {"info": {"version": "0.0.1"}},
        }
        body = json.dumps(answers[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() - 3600)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as in the base class
        pass


@contextmanager
def old_server() -> Generator[str]:
    with HTTPServer(("127.0.0.1", 0), _Old) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_of_another_version_with_a_wrong_clock_and_a_failing_store(shell: Shell) -> None:
    with old_server() as url:
        found = examined(shell, "--url", url, code=1)
    assert "behind" in found["clock"][0]["message"]
    assert "0.0.1" in found["version"][0]["message"]
    assert "the disk is full" in found["store of the server"][0]["message"]


def test_online_a_registry_that_is_not_reached_is_a_problem(shell: Shell, home: Path) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    store = f"postgres://me:secret-word@127.0.0.1:{free_port()}/x"
    env = {"HTTPS_PROXY": proxy, "SANDBOX_AGENT_STORE": store}
    found: CompletedProcess[str] | Findings = examined(shell, "--online", code=1, env=env)
    assert [each["status"] for each in found["network"]] == ["problem", "problem"]
    assert found["store"][-1]["status"] == "problem"
    assert "secret-word" not in str(found)
