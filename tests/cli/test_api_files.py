"""``sandbox-agent api fs``, over a running server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.cli.conftest import COMMAND, Shell
from tests.server.files.test_snapshots import make_repo
from tests.support.servers import ServerProcess, our_server

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "home").mkdir()
    with our_server(tmp_path, env={"HOME": str(tmp_path / "home")}) as server:
        yield server


@pytest.fixture
def run(shell: Shell, server: ServerProcess) -> Run:
    """Runs a command against the server."""

    def run(*words: str, stdin: str = "", code: int = 0) -> CompletedProcess[str]:
        done = shell.run("api", "fs", *words, "--endpoint", server.url, stdin=stdin)
        assert done.returncode == code, done.stderr
        return done

    return run


def test_a_file_is_written_read_listed_moved_and_deleted(run: Run, tmp_path: Path) -> None:
    version = json.loads(run("write", "sub/file", stdin="hello").stdout)["version"]
    run("write", "sub/file", "--if-absent", stdin="other", code=1)
    (tmp_path / "local").write_text("replaced")
    run("write", "sub/file", str(tmp_path / "local"), "--if-match", version)
    assert run("read", "sub/file").stdout == "replaced"
    run("read", "sub/file", "-o", str(tmp_path / "output"))
    assert (tmp_path / "output").read_text() == "replaced"
    assert [entry["name"] for entry in json.loads(run("list").stdout)] == ["sub"]
    assert json.loads(run("stat", "sub/file").stdout)["size"] == 8
    run("mkdir", "other")
    run("move", "sub/file", "other/file")
    run("delete", "other", code=73)
    run("delete", "other", "--recursive")
    failed = run("read", "other/file", "-o", str(tmp_path / "missing"), code=66)
    assert failed.stderr.startswith("sandbox-agent: path not found")
    assert not (tmp_path / "missing").exists()


def test_folders_are_uploaded_and_downloaded(run: Run, tmp_path: Path) -> None:
    project = make_repo(tmp_path / "project")
    (project / "ignored").write_text("1")
    run("upload-dir", str(project), "work", "--gitignore")
    run("download-dir", "work", str(tmp_path / "result"))
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == [
        ".gitignore",
        "changed",
        "deleted",
        "kept",
    ]


def test_changes_are_lines_until_the_folder_is_deleted(
    run: Run, server: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "home/sub").mkdir()
    command = [sys.executable, "-m", "sandbox_agent.cli.main", "api", "fs", "watch", "sub", "-e", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline()) == {"type": "ready"}
        (tmp_path / "home/sub/file").touch()
        expected = {"type": "created", "path": f"{tmp_path}/home/sub/file"}
        assert json.loads(watching.stdout.readline()) == expected
        (tmp_path / "home/sub/file").unlink()
        (tmp_path / "home/sub").rmdir()
        _, said = watching.communicate(timeout=30)
    assert (watching.returncode, "deleted or moved" in said) == (66, True)


def test_what_a_session_has_changed_is_shown(
    run: Run, shell: Shell, server: ServerProcess, tmp_path: Path
) -> None:
    repo = make_repo(tmp_path / "repo")
    words = ("api", "sessions", "create", "s", "--agent", "mock", "--directory", str(repo))
    assert shell.run(*words, "-e", server.url).returncode == 0
    (repo / "changed").write_text("two\n")
    assert "-one\n+two\n" in run("diff", "s").stdout


def test_ctrl_c_ends_a_write_that_waits_for_its_input(server: ServerProcess, tmp_path: Path) -> None:
    words = [*COMMAND, "api", "fs", "write", "file", "-e", server.url]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as writing:
        assert writing.stdin is not None
        writing.stdin.write(b"first")
        writing.stdin.flush()
        while not list((tmp_path / "home").iterdir()):  # the server has begun with the file
            assert writing.poll() is None
        writing.send_signal(signal.SIGINT)
        assert writing.wait(30) == 130
        assert writing.stderr is not None
        assert writing.stderr.read() == b""
    assert not (tmp_path / "home/file").exists()
