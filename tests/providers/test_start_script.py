"""The script that starts the server in a sandbox, run by sh in a home of its own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_agent.providers import start_script
from sandbox_agent.providers.own_wheel import make_wheel
from sandbox_agent.providers.start_script import StartScript
from tests.support.servers import free_port

TOKEN = "the token of the sandbox"
SH = shutil.which("dash") or "/bin/sh"


class Box:
    """A home with a folder for the server. Its name needs to be quoted."""

    def __init__(self, root: Path) -> None:
        self.home = root / "it's a home"
        self.folder = self.home / ".sandbox-agent"
        self.programs = root / "programs"
        self.folder.mkdir(parents=True)
        self.programs.mkdir()
        self.port = free_port()

    def put_token(self) -> None:
        """Upload the token, as a service may do: for all to read."""
        (self.folder / "token").write_text(TOKEN)
        (self.folder / "token").chmod(0o644)

    def put_program(self) -> None:
        """Install sandbox-agent on PATH, as an image may have it."""
        (self.programs / "sandbox-agent").symlink_to(Path(sys.executable).with_name("sandbox-agent"))

    def run(self, script: StartScript, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the script to its end, and to the end of its output."""
        return subprocess.run(
            [SH, "-s", *words],
            input=script.text(),
            env={"HOME": str(self.home), "PATH": f"{self.programs}:/usr/bin:/bin:{os.defpath}", **env},
            capture_output=True,
            text=True,
            timeout=100,
        )

    def status(self, token: str) -> int:
        """Return the status of a request with a token."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/agents")
        request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def pid(self) -> int:
        """Return the server's process id."""
        return int((self.folder / "server.pid").read_text())

    def kill(self) -> None:
        """Kill the server, if there is one."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(self.pid(), signal.SIGKILL)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.kill()


def test_the_script_starts_the_server_of_path_which_needs_the_token(box: Box) -> None:
    box.put_token()
    box.put_program()
    done = box.run(StartScript(port=box.port, host="127.0.0.1"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [box.status(TOKEN), box.status("wrong")] == [200, 401]
    assert stat.S_IMODE((box.folder / "token").stat().st_mode) == 0o600
    command = Path(f"/proc/{box.pid()}/cmdline").read_bytes() if sys.platform == "linux" else b""
    assert TOKEN.encode() not in command
    assert (box.folder / "server.db").exists()


def test_the_script_does_nothing_if_the_server_answers_and_starts_it_again_if_it_was_killed(box: Box) -> None:
    box.put_token()
    box.put_program()
    script = StartScript(port=box.port, host="127.0.0.1")
    assert box.run(script).returncode == 0
    first = box.pid()
    assert box.run(script).returncode == 0
    assert box.pid() == first
    box.kill()
    assert box.run(script).returncode == 0
    assert box.pid() != first
    assert box.status(TOKEN) == 200


def test_a_script_that_only_installs_starts_no_server(box: Box) -> None:
    box.put_token()
    box.put_program()
    assert box.run(StartScript(port=box.port, host="127.0.0.1"), "install").returncode == 0
    assert not (box.folder / "server.pid").exists()
    done = box.run(StartScript(port=box.port, install_agents=["no-such-agent"]), "install")
    assert done.returncode == start_script.AGENTS_FAILED


def test_two_scripts_at_once_start_one_server(box: Box) -> None:
    box.put_token()
    box.put_program()
    text = StartScript(port=box.port, host="127.0.0.1").text()
    env = {"HOME": str(box.home), "PATH": f"{box.programs}:/usr/bin:/bin"}
    both = [
        subprocess.Popen([SH, "-c", text], env=env, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        for _ in range(2)
    ]
    said = [(script.communicate(timeout=60)[1], script.returncode) for script in both]
    assert said == [(b"", 0), (b"", 0)]
    assert box.status(TOKEN) == 200


def test_a_script_without_a_token_starts_nothing(box: Box) -> None:
    box.put_program()
    done = box.run(StartScript(port=box.port))
    assert done.returncode == start_script.NO_TOKEN
    assert f"there is no token in {box.folder}/token" in done.stderr


def test_a_server_that_ends_at_its_start_is_reported_with_its_output(box: Box) -> None:
    box.put_token()
    box.put_program()
    done = box.run(StartScript(port=box.port, arguments=["--no-such-option", "it's"]))
    assert done.returncode == start_script.START_FAILED
    assert "the server ended at its start:" in done.stderr
    assert "--no-such-option" in done.stderr


def test_a_server_that_does_not_answer_in_time_is_stopped(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_script, "START_TIMEOUT", 1)
    box.put_token()
    version = f"sandbox-agent, version {start_script.package_version()}"
    program = box.programs / "sandbox-agent"
    program.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version}"; else exec sleep 60; fi\n')
    program.chmod(0o755)
    done = box.run(StartScript(port=box.port))
    assert done.returncode == start_script.START_FAILED
    assert "the server did not answer within 1 s:" in done.stderr


def test_arguments_and_the_folder_are_quoted(box: Box, tmp_path: Path) -> None:
    box.put_program()
    folder = tmp_path / "a 'folder' of; $(touch evil)"
    folder.mkdir()
    (folder / "token").write_text(TOKEN)
    store = f"sqlite:{tmp_path}/it's; `touch evil`.db"
    script = StartScript(port=box.port, host="127.0.0.1", folder=str(folder), arguments=["--store", store])
    try:
        assert box.run(script).returncode == 0
        assert box.status(TOKEN) == 200
    finally:
        os.kill(int((folder / "server.pid").read_text()), signal.SIGKILL)
    assert Path(store.removeprefix("sqlite:")).exists()
    assert not (folder / "server.db").exists()


def test_agents_that_cannot_be_installed_are_reported(box: Box) -> None:
    box.put_token()
    box.put_program()
    done = box.run(StartScript(port=box.port, install_agents=["no-such-agent"]))
    assert done.returncode == start_script.AGENTS_FAILED
    assert "agents could not be installed: no-such-agent" in done.stderr


@pytest.mark.sandboxes
def test_another_version_on_path_is_not_used(box: Box) -> None:
    box.put_token()
    (box.programs / "sandbox-agent").write_text("#!/bin/sh\necho 'sandbox-agent 0.4.2'\n")
    (box.programs / "sandbox-agent").chmod(0o755)
    (box.programs / "python3").symlink_to(sys.executable)
    done = box.run(StartScript(port=box.port), PIP_NO_INDEX="1")
    assert done.returncode == start_script.NEEDS_WHEEL
    assert "could not be installed from the package index" in done.stderr


def test_without_python_the_script_says_so(box: Box, tmp_path: Path) -> None:
    box.put_token()
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("mkdir", "tail", "chmod", "rm", "flock"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = box.run(StartScript(port=box.port), PATH=str(tools))
    assert done.returncode == start_script.INSTALL_FAILED
    assert "nor Python 3.11 or newer is installed" in done.stderr


def test_the_wheel_is_that_of_the_running_package() -> None:
    name, content = make_wheel()
    assert name == f"sandbox_agent_py-{start_script.package_version()}-py3-none-any.whl"
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert "sandbox_agent/providers/start_script.py" in names
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.sandboxes
def test_a_sandbox_without_the_package_gets_the_wheel(box: Box) -> None:
    box.put_token()
    (box.programs / "python3").symlink_to(sys.executable)
    script = StartScript(port=box.port, host="127.0.0.1")
    assert box.run(script, PIP_NO_INDEX="1").returncode == start_script.NEEDS_WHEEL
    name, content = make_wheel()
    (box.folder / name).write_bytes(content)
    settings = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    done = box.run(script, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert box.status(TOKEN) == 200
    box.kill()
    # The second time it is installed already: no index is asked.
    assert box.run(script, PIP_NO_INDEX="1").returncode == 0
    assert box.status(TOKEN) == 200
