"""``sandbox-agent daemon``: a server in the background."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from sandbox_agent.cli import daemon, daemon_start
from sandbox_agent.cli.main import cli
from sandbox_agent.runtime.process_identity import identity
from tests.cli.conftest import COMMAND, Shell
from tests.support.servers import free_port, our_server

TOKEN = "s3cret-token-0123456789"

Run = Callable[..., CompletedProcess[str]]


class Daemon:
    """Runs the commands for one address."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = shell.folder / "data/sandbox-agent/daemon"
        self.state_file = self.folder / f"daemon-127-0-0-1-{self.port}.json"
        self.log = self.folder / f"daemon-127-0-0-1-{self.port}.log"

    def run(
        self, name: str, *words: str, code: int = 0, env: dict[str, str] | None = None
    ) -> CompletedProcess[str]:
        done = self.shell.run("daemon", name, "--port", str(self.port), *words, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def status(self, code: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("status", "--json", code=code).stdout)
        return document

    @property
    def state(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.state_file.read_text())
        return document

    def change_state(self, **changes: Any) -> None:
        self.state_file.write_text(json.dumps({**self.state, **changes}))

    def is_healthy(self) -> bool:
        return httpx2.get(f"{self.url}/v1/health").json() == {"status": "ok"}


@pytest.fixture
def served(shell: Shell) -> Iterator[Daemon]:
    """An address at which a server may be started; it is stopped at the end."""
    served = Daemon(shell)
    yield served
    served.run("stop")


def test_a_server_is_started_shown_and_stopped(served: Daemon) -> None:
    stopped = served.status(code=3)
    assert stopped == {"status": "stopped", "url": served.url, "log": str(served.log)}
    said = served.run("start", env={"SANDBOX_AGENT_TOKEN": TOKEN}).stdout
    pid = served.state["pid"]
    assert said == f"the server runs at {served.url}, pid {pid}, log {served.log}\n"
    assert served.is_healthy()
    assert os.getsid(pid) == pid
    shown = served.status()
    assert (shown["status"], shown["pid"], shown["uptimeSeconds"] >= 0) == ("running", pid, True)
    assert shown["store"] == f"{served.shell.folder}/data/sandbox-agent/server.db"
    lines = served.run("status", "--token", TOKEN).stdout.splitlines()
    assert lines[:3] == ["status   running", f"url      {served.url}", f"pid      {pid}"]
    assert (
        served.run("status", "--token", "another-token", code=4).stdout.splitlines()[0].endswith("unhealthy")
    )
    assert "another token" in served.run("start", "--token", "another-token", code=77).stderr
    assert served.run("stop").stdout == "the server has ended\n"
    assert identity(pid) is None
    assert served.run("stop").stdout == "the server is not running\n"
    assert served.status(code=3) == stopped


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_token_is_on_no_command_line_and_in_no_file(served: Daemon) -> None:
    served.run("start", "--token", TOKEN)
    command = Path(f"/proc/{served.state['pid']}/cmdline").read_bytes()
    assert b"--token-file" in command
    assert TOKEN.encode() not in command
    assert httpx2.get(f"{served.url}/v1/agents").status_code == 401
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx2.get(f"{served.url}/v1/agents", headers=headers).status_code == 200
    assert stat.S_IMODE(served.folder.stat().st_mode) == 0o700
    for path in served.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert TOKEN not in path.read_text()


def test_commands_at_once_start_one_server(served: Daemon) -> None:
    words = [*COMMAND, "daemon", "start", "-p", str(served.port), "--", "--store", "memory"]
    started = [
        subprocess.Popen(
            words, env=served.shell.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [each.communicate(timeout=60) for each in started]
    assert [each.returncode for each in started] == [0] * 4, said
    pid = served.state["pid"]
    expected = f"at {served.url}, pid {pid}, log {served.log}\n"
    assert sorted(out for out, _ in said) == [
        *[f"the server already runs {expected}"] * 3,
        f"the server runs {expected}",
    ]


def test_a_server_survives_the_end_of_its_terminal(served: Daemon) -> None:
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [*COMMAND, "daemon", "start", "-p", str(served.port)],
        env=served.shell.env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    assert child.wait(60) == 0
    os.close(theirs)
    os.close(ours)  # its processes get SIGHUP
    assert served.is_healthy()


def test_a_server_that_does_not_start_says_why(served: Daemon) -> None:
    (served.shell.folder / "file").touch()
    failed = served.run("start", "--", "--store", f"sqlite:{served.shell.folder}/file/x.db", code=1)
    assert "file/x.db' can't be" in failed.stderr
    assert failed.stderr.endswith("exited with code 64 at its start: the end of its log says why\n")
    assert not served.state_file.exists()
    with our_server(served.shell.folder, port=served.port):
        failed = served.run("start", code=73)
        assert "another server answers" in failed.stderr
        assert "another server answers" in served.status(code=3)["reason"]


def test_options_are_checked_and_kept(served: Daemon) -> None:
    runner = CliRunner()
    for words in (["--host", "::"], ["-t", TOKEN], [f"-t{TOKEN}"], ["--uds", "x"], ["--log-file", "x"]):
        refused = runner.invoke(cli, ["daemon", "start", "--", *words])
        assert "can't stand after --" in str(refused.exception)
    refused = runner.invoke(cli, ["daemon", "start", "--", "--store", "redis://me:secret@x"])
    assert "has a password" in str(refused.exception)
    assert runner.invoke(cli, ["daemon", "start", "--", "--unknown"]).exit_code == 2
    assert "'word' is not an option" in runner.invoke(cli, ["daemon", "start", "--", "word"]).output
    served.run("start", "--", "--store", "memory", "--fs-root", ".")
    assert served.status()["store"] == "memory"
    served.run("start")
    served.run("start", "--", "--store", "memory", "--fs-root", ".")
    assert "--store memory" in served.run("start", "--", "--store", "other.db", code=73).stderr
    assert "would lose" in upgraded(served, code=73).stderr


def upgraded(served: Daemon, *words: str, code: int = 0, env: dict[str, str] | None = None) -> Any:
    served.change_state(version="0.0.1")
    return served.run("start", "--upgrade", *words, code=code, env=env)


def test_an_upgrade_keeps_options_and_sessions(served: Daemon) -> None:
    (served.shell.folder / "a.toml").touch()
    served.run("start", "--token", TOKEN, "--", "--store", "own.db", env={"SANDBOX_AGENT_AGENTS": "a.toml"})
    words = ("api", "sessions", "create", "kept", "--agent", "mock", "-e", served.url)
    env = {"SANDBOX_AGENT_TOKEN": TOKEN}
    assert served.shell.run(*words, env=env).returncode == 0
    served.run("start", "--upgrade", env=env)
    first = served.state
    assert "--upgrade restarts it" in started_as_other(served, env).stderr
    assert "pass it in SANDBOX_AGENT_TOKEN" in upgraded(served, code=64).stderr
    assert "are in" in upgraded(served, "--", "--store", "other.db", code=64, env=env).stderr
    said = upgraded(served, env=env).stdout
    assert f"is upgraded from 0.0.1 to {first['version']}" in said
    second = served.state
    for name in ("version", "options", "store", "cwd", "variables"):
        assert second[name] == first[name]
    assert second["variables"]["SANDBOX_AGENT_AGENTS"] == "a.toml"
    assert (second["pid"] == first["pid"], identity(first["pid"])) == (False, None)
    done = served.shell.run("api", "sessions", "get", "kept", "-e", served.url, env=env)
    assert json.loads(done.stdout)["sessionId"] == "kept"


def started_as_other(served: Daemon, env: dict[str, str]) -> CompletedProcess[str]:
    before = served.state["version"]
    served.change_state(version="0.0.1")
    done = served.run("start", env=env)
    served.change_state(version=before)
    return done


def test_a_server_that_was_killed_is_started_again(served: Daemon) -> None:
    served.run("start")
    pid = served.state["pid"]
    os.kill(pid, signal.SIGKILL)
    served.shell.leftovers.wait()
    shown = served.status(code=3)
    assert "ended by itself" in shown["reason"]
    served.run("start")
    assert served.is_healthy()


def test_a_process_that_has_the_pid_of_a_server_by_now_is_left_alone(served: Daemon) -> None:
    served.run("start")
    state = served.state
    served.run("stop")
    with subprocess.Popen(["sleep", "1000"]) as other:
        served.state_file.write_text(json.dumps({**state, "pid": other.pid}))
        assert "ended by itself" in served.status(code=3)["reason"]
        assert served.run("stop").stdout == "the server is not running\n"
        assert other.poll() is None
        other.kill()


def test_a_state_that_is_damaged_is_that_of_no_server(served: Daemon) -> None:
    served.run("start")
    served.run("stop")
    served.state_file.write_text('{"pid": 1')
    assert served.status(code=3)["status"] == "stopped"
    served.run("start")


def test_a_server_that_hangs_is_shown_and_killed(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    served.run("start", "--", "--store", "memory")
    pid = served.state["pid"]
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setenv("XDG_DATA_HOME", served.shell.env["XDG_DATA_HOME"])
    monkeypatch.setattr(daemon_start, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(daemon, "HEALTHY_SECONDS", 0.2)
    monkeypatch.setattr(daemon, "STOP_SECONDS", 0.2)
    runner = CliRunner()
    address = ("-p", str(served.port))
    shown = runner.invoke(cli, ["daemon", "status", *address])
    assert (shown.exit_code, "unhealthy" in shown.output) == (4, True)
    failed = runner.invoke(cli, ["daemon", "start", *address])
    assert "runs, but" in str(failed.exception)
    stopped = runner.invoke(cli, ["daemon", "stop", *address])
    assert stopped.output == "the server did not end and was killed\n"
    assert identity(pid) is None


def test_a_start_that_takes_too_long_is_ended(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_start, "START_SECONDS", 0.0)
    monkeypatch.setenv("XDG_DATA_HOME", served.shell.env["XDG_DATA_HOME"])
    failed = CliRunner().invoke(cli, ["daemon", "start", "-p", str(served.port), "--", "--store", "memory"])
    assert "did not listen within" in str(failed.exception)
    assert served.status(code=3)["status"] == "stopped"


def test_ctrl_c_ends_a_server_that_starts(served: Daemon) -> None:
    other = Daemon(served.shell)
    other.run("start")  # it has the store, for which the second one waits
    words = ["daemon", "start", "-p", str(served.port), "--", "--store-wait", "50"]
    with served.shell.start(*words) as starting:
        while not served.state_file.exists():
            assert starting.poll() is None
        pid = served.state["pid"]
        starting.send_signal(signal.SIGINT)
        assert starting.wait(30) != 0
    assert identity(pid) is None
    assert not served.state_file.exists()
    other.run("stop")


def test_the_commands_of_the_published_daemon_are_accepted(served: Daemon) -> None:
    served.run("start", "--host", "127.0.0.1", "--no-token")
    served.run("start", "-H", "127.0.0.1", "-n", "--upgrade")
    served.run("status", "-H", "127.0.0.1", "-n")
    served.run("stop", "-H", "127.0.0.1", "-n")
