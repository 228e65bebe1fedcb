"""What the command writes where the output can't be written, and the words of its errors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, SECONDS, Shell
from tests.support.servers import our_server

FULL = Path("/dev/full")
TOKEN = "a-token-for-the-tests"


def one_line(stderr: str) -> str:
    """Return the one line of an error."""
    (line,) = stderr.splitlines()
    return line


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
@pytest.mark.parametrize(
    "words",
    [("agents", "list"), ("--help",), ("sessions", "list", "--help"), ("run", "echo hello", "-a", "mock")],
)
def test_a_full_device_is_one_line(shell: Shell, words: tuple[str, ...]) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words], env=shell.env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=SECONDS
        )
    assert done.returncode == 1
    assert one_line(done.stderr) == "sandbox-agent: the output can't be written: No space left on device"


@pytest.mark.parametrize("words", [("agents", "list"), ("run", "burst 5000 10", "-a", "mock")])
def test_a_closed_pipe_is_one_line(shell: Shell, words: tuple[str, ...]) -> None:
    running = shell.start(*words)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    stderr = running.stderr.read().decode()
    running.stderr.close()
    assert running.wait(SECONDS) == 1
    assert one_line(stderr) == "sandbox-agent: the output can't be written: Broken pipe"


@pytest.mark.parametrize("words", [("api", "sessions", "list"), ("search", "word"), ("ps",), ("tail", "s")])
def test_a_missing_token_names_the_option(shell: Shell, tmp_path: Path, words: tuple[str, ...]) -> None:
    with our_server(tmp_path, token=TOKEN) as server:
        done = shell.run(*words, "--endpoint", server.url)
    assert done.returncode == 77
    line = one_line(done.stderr)
    assert "pass --token TOKEN, or set SANDBOX_AGENT_TOKEN" in line
    assert "header" not in line


def test_an_address_that_is_none_names_the_option(shell: Shell) -> None:
    done = shell.run("api", "sessions", "list", "--endpoint", "nowhere")
    assert "--endpoint must be an http(s) URL" in done.stderr
    assert "base_url" not in done.stderr


def test_an_agent_that_exits_is_described_without_http(shell: Shell) -> None:
    done = shell.run("run", "die 3", "-a", "mock")
    last = done.stderr.splitlines()[-1]
    assert "mock ended with exit code 3; the next call starts it again" in last


@pytest.mark.parametrize("cursor", ["bogus", "k!!", "-1"])
def test_a_cursor_that_the_command_did_not_print_is_refused(shell: Shell, cursor: str) -> None:
    assert shell.run("run", "hello", "-a", "mock", "--store", "s.db").returncode == 0
    done = shell.run("sessions", "list", "--store", "s.db", f"--cursor={cursor}")
    assert done.returncode == 2
    assert "is not a cursor of this command" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "hello", "-a", "mock", "--store", "redis"),
        ("run", "hello", "-a", "mock", "--store", "bogus"),
        ("run", "hello", "-a", "mock", "--store", "missing/s.db"),
        ("server", "--port", "0", "--store", "bogus"),
        ("server", "--port", "0", "--store", "sqlite:missing/s.db"),
        ("mirror", "s", "--into", "bogus"),
        ("mirror", "s", "--into", "missing/s.db"),
    ],
)
def test_a_store_that_is_a_typo_is_refused_and_nothing_is_made(shell: Shell, words: tuple[str, ...]) -> None:
    before = sorted(shell.folder.iterdir())
    done = shell.run(*words)
    assert done.returncode in (2, 64)
    assert sorted(shell.folder.iterdir()) == before
    assert done.stdout == ""
