"""``sandbox-agent run``."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sandbox_agent.cli.run import EXIT_CODES, OTHER_STOP
from tests.cli.conftest import COMMAND, SECONDS, Shell
from tests.support.servers import free_port


def test_run_writes_words_to_stdout_and_deeds_to_stderr(shell: Shell) -> None:
    done = shell.run("run", "demo", "--agent", "mock", "--yes")
    assert done.returncode == 0
    assert done.stdout.startswith("Here is what an agent can say")
    assert "# Mock agent\n" in done.stdout
    assert "I wonder what the user wants of me.\n" in done.stderr
    assert "plan   [x] Read the request\n" in done.stderr
    assert "permission  Write hello.txt: allowed (--yes)\n" in done.stderr
    assert "tool   Write hello.txt: completed\n" in done.stderr
    assert "usage  1,234 of 200,000 tokens, 0.0125 USD\n" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_run_loses_nothing_when_the_agent_bursts(shell: Shell) -> None:
    done = shell.run("run", "burst 20000 10", "-a", "mock")
    assert done.returncode == 0
    assert [int(number) for number in re.findall(r"(\d{6}) xxx", done.stdout)] == list(range(1, 20_001))


def test_run_writes_envelopes_when_json_is_wanted(shell: Shell) -> None:
    done = shell.run("run", "echo hello", "-a", "mock", "--json")
    envelopes = [json.loads(line) for line in done.stdout.splitlines()]
    assert envelopes[0]["method"] == "session/prompt"
    assert envelopes[1]["params"]["update"]["content"]["text"] == "hello"
    assert envelopes[-1]["result"]["stopReason"] == "end_turn"


def test_run_rejects_a_permission_and_says_so_when_there_is_no_terminal(shell: Shell) -> None:
    done = shell.run("run", "permission", "-a", "mock")
    assert done.returncode == 0
    assert "rejected, no terminal to ask on (use --yes to allow)" in done.stderr
    assert "hello.txt is not written" in done.stdout


def test_run_shows_a_permission_after_what_came_before_it(shell: Shell) -> None:
    terminal = Terminal(shell, "run", "demo", "-a", "mock", "--yes", env={"NO_COLOR": "1"})
    _, shown = terminal.end()
    text = shown.decode().replace("\r\n", "\n")
    before, _, after = text.partition("permission  Write hello.txt: allowed (--yes)\n")
    assert before.startswith("Here is what an agent can say: text, and next")
    assert before.endswith("The plan is done.\ntool   Write hello.txt: pending\n")
    assert after.startswith("tool   Write hello.txt: in_progress\n")


def test_run_takes_the_prompt_from_standard_input(shell: Shell) -> None:
    assert shell.run("run", "-", "-a", "mock", stdin="echo piped").stdout == "piped\n"


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "\ufffd é"), ("ascii", "? ?")])
def test_run_writes_text_that_the_output_can_not_encode(shell: Shell, encoding: str, shown: str) -> None:
    # A byte of the command line that is not UTF-8 becomes a lone surrogate, which the mock says back.
    env = {"PYTHONUTF8": "1", "PYTHONIOENCODING": encoding}
    done = shell.run("run", "echo \udcff é", "-a", "mock", "--store", "sqlite:s.db", env=env)
    assert (done.returncode, done.stdout) == (0, f"{shown}\n")
    [record] = json.loads(shell.run("sessions", "list", "--store", "sqlite:s.db", "--json").stdout)["items"]
    shown = shell.run("sessions", "show", record["id"], "--store", "sqlite:s.db", env=env).stdout
    assert "> echo ? " in shown  # what is no text of a chunk: replaced when it is written


def test_run_works_in_the_folder_and_with_the_settings_that_it_is_given(shell: Shell, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    settings = ["--model", "mock-fast", "--mode", "plan", "--thought-level", "high"]
    done = shell.run("run", "tool", "-a", "mock", "--cwd", work, *settings, "--store", "s.db", "--json")
    assert f'"{work}/hello.txt"' in done.stdout
    listed = json.loads(shell.run("sessions", "list", "--store", "s.db", "--json").stdout)
    (record,) = listed["items"]
    assert record["sessionInit"]["cwd"] == str(work)
    values = {option["id"]: option["currentValue"] for option in record["configOptions"]}
    assert values == {"model": "mock-fast", "mode": "plan", "thought_level": "high"}


@pytest.mark.parametrize(("reason", "code"), [*EXIT_CODES.items(), ("a_newer_reason", OTHER_STOP)], ids=str)
def test_run_exits_by_the_stop_reason(shell: Shell, reason: str, code: int) -> None:
    done = shell.run("run", reason, "-a", "claude")
    assert done.returncode == code
    assert done.stdout == f"{reason}\n"
    assert (f"stopped: {reason}" in done.stderr) == (reason != "end_turn")


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["x", "-a", "nobody"], 64, "unsupported agent: nobody"),
        (["x", "-a", "cursor"], 69, "put `cursor-agent-acp`"),
        (["x", "-a", "mock", "--model", "huge"], 64, "Allowed values: mock, mock-fast"),
        (["die 3", "-a", "mock"], 70, "exit code 3"),
        (["x", "-a", "mock", "--store", "."], 2, "is a directory"),
        (["x", "-a", "mock", "--store", "no.db"], 74, "is not an SQLite database"),
        (["x", "-a", "mock", "--cwd", "nowhere"], 2, "does not exist"),
        ([" ", "-a", "mock"], 2, "the prompt is empty"),
        (
            ["x", "-a", "mock", "--allow-host", "a.test"],
            2,
            "--allow-host needs --sandbox jail, docker or podman",
        ),
        (["x", "-a", "mock", "--keep"], 2, "--keep is for a container or a service"),
        (
            ["x", "-a", "mock", "--image", "a", "--sandbox", "cloudflare"],
            2,
            "--image is for --sandbox docker",
        ),
        (["x", "-a", "mock", "--sandbox", "cloudflare"], 1, "set CLOUDFLARE_SANDBOX_URL"),
        (["x"], 2, "Missing option '--agent'"),
    ],
    ids=str,
)
def test_run_says_in_one_line_what_is_wrong(shell: Shell, words: list[str], code: int, hint: str) -> None:
    (shell.folder / "no.db").write_text("this is a letter to a friend, not a database\n" * 100)
    done = shell.run("run", *words, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == code
    assert hint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def read_until(stream: int, wanted: bytes) -> bytes:
    """Read from a descriptor until it has said something."""
    said, deadline = b"", time.monotonic() + SECONDS
    while wanted not in said:
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(stream, 4096) if ready else b""
        assert piece, f"it never said {wanted!r}: {said!r}"
        said += piece
    return said


def test_ctrl_c_cancels_the_turn(shell: Shell) -> None:
    with shell.start("run", "stream 10000 10", "-a", "mock", "--store", "s.db") as child:
        assert child.stdout is not None
        read_until(child.stdout.fileno(), b"000003")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=SECONDS)
    assert child.returncode == 130
    assert b"cancelling; press Ctrl-C again to end immediately" in said
    assert b"stopped: cancelled" in said
    (record,) = json.loads(shell.run("sessions", "list", "--store", "s.db", "--json").stdout)["items"]
    last = shell.run("sessions", "export", record["id"], "--store", "s.db").stdout.splitlines()[-1]
    assert json.loads(last)["payload"]["result"]["stopReason"] == "cancelled"


def test_a_second_ctrl_c_ends_an_agent_that_ignores_the_first(shell: Shell) -> None:
    with shell.start("run", "deaf", "-a", "claude") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        read_until(child.stdout.fileno(), b"deaf")
        child.send_signal(signal.SIGINT)
        read_until(child.stderr.fileno(), b"cancelling")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=SECONDS)
    assert child.returncode == 130
    assert b"ended immediately" in said
    shell.leftovers.wait()


def test_sigterm_ends_everything_at_once(shell: Shell) -> None:
    with shell.start("run", "deaf", "-a", "claude") as child:
        assert child.stdout is not None
        read_until(child.stdout.fileno(), b"deaf")
        child.terminate()
        child.communicate(timeout=SECONDS)
    assert child.returncode == 128 + signal.SIGTERM
    shell.leftovers.wait()


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self, shell: Shell, *words: str, env: dict[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        self.child = subprocess.Popen(
            [*COMMAND, *words],
            cwd=shell.folder,
            env={**shell.env, "TERM": "xterm", **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def until(self, wanted: bytes) -> bytes:
        """Return what it wrote up to there."""
        return read_until(self.master, wanted)

    def type(self, text: bytes) -> None:
        """Type something."""
        os.write(self.master, text)

    def end(self) -> tuple[int, bytes]:
        """Return its exit code, and what it still wrote."""
        said = b""
        try:
            while piece := os.read(self.master, 4096):
                said += piece
        except OSError:
            pass  # Linux: the other side is closed
        os.close(self.master)
        return self.child.wait(SECONDS), said


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"y\n", b"Permission granted (allow_once)"),
        (b"maybe\nalways\n", b"Permission granted (allow_always)"),
        (b"n\n", b"Permission rejected"),
        (b"\x04", b"Permission rejected"),
    ],
)
def test_run_asks_for_a_permission_on_the_terminal(shell: Shell, answer: bytes, outcome: bytes) -> None:
    terminal = Terminal(shell, "run", "permission", "-a", "mock")
    terminal.until(b"[y]es / [a]lways / [n]o? ")
    terminal.type(answer)
    code, said = terminal.end()
    assert code == 0
    assert outcome in said


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([b"2\n", b"s, 3\n", b"\n"], b'"content":{"color":"#00f","sizes":["S","L"]}'),
        ([b"green\n\nred\n", b"\n", b"in oil\n"], b'"content":{"color":"#f00","note":"in oil"}'),
        ([b"\x04"], b'{"action":"decline"}'),
    ],
)
def test_run_asks_a_question_on_the_terminal(shell: Shell, answers: list[bytes], outcome: bytes) -> None:
    terminal = Terminal(shell, "run", "question", "-a", "mock")
    for prompt, answer in zip(
        [b"Color? ", b"commas)? ", b"(Anything else (optional).)? "], answers, strict=False
    ):
        terminal.until(prompt)
        terminal.type(answer)
    code, said = terminal.end()
    assert code == 0
    assert outcome in said


def test_run_colors_a_terminal_unless_no_color_is_set(shell: Shell) -> None:
    code, coloured = Terminal(shell, "run", "tool", "-a", "mock").end()
    assert code == 0
    assert b"\x1b[32mtool   Read hello.txt: completed" in coloured
    _, plain = Terminal(shell, "run", "tool", "-a", "mock", env={"NO_COLOR": "1"}).end()
    assert b"tool   Read hello.txt: completed" in plain
    assert b"\x1b" not in plain


def test_what_an_agent_says_does_not_steer_the_terminal(shell: Shell) -> None:
    _, said = Terminal(shell, "run", "escape", "-a", "claude").end()
    assert b"\x1b]" not in said
    assert b"red" in said
    assert shell.run("run", "escape", "-a", "claude").stdout == "\x1b]0;owned\x07red\n"


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_run_starts_nothing_when_the_store_is_away(shell: Shell, kind: str) -> None:
    store = f"{kind}://me:not-shown@127.0.0.1:{free_port()}/0"
    done = shell.run("run", "echo hello", "-a", "mock", "--store", store)
    assert done.returncode == 74
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "can't be reached" in line
    assert "then try again" in line
    assert "not-shown" not in line
