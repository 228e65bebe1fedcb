"""``sandbox-agent chat``, on a terminal."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.cli.conftest import Shell
from tests.cli.pseudo_terminals import Display

Open = Callable[..., Display]


@pytest.fixture
def chat(shell: Shell) -> Iterator[Open]:
    """Open chats, which are ended by the test."""
    opened: list[Display] = []

    def start(*words: str, env: dict[str, str] | None = None) -> Display:
        display = Display(shell, "chat", *words, env=env)
        opened.append(display)
        display.shows("Enter sends", "\n>")
        return display

    yield start
    for display in opened:
        if display.child.poll() is None:
            display.child.kill()
            display.child.wait()


def quit_chat(display: Display) -> None:
    display.type(b"/quit\r")
    assert display.end()[0] == 0


def test_a_message_is_sent_and_the_answer_is_shown(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"echo hello\r")
    display.shows("> echo hello\nhello\n")
    display.type(b"usage\r")
    display.shows("usage  1,234 of 200,000 tokens, 0.0125 USD", "turn   1,000 in, 234 out (tokens)")
    quit_chat(display)


def test_a_permission_is_asked_and_what_was_typed_is_kept(chat: Open, shell: Shell) -> None:
    display = chat("-a", "mock")
    display.type(b"permission\r")
    text = display.shows("[y]es / [a]lways / [n]o?")
    assert f"file {shell.folder}/hello.txt" in text
    assert "+hello, world" in text
    display.type(b"maybe\r")
    display.shows("that is no answer")
    display.type(b"y\r")
    display.shows("Permission granted (allow_once)")
    display.type(b"permission\r")
    display.shows("Write hello.txt: [y]es")
    display.type(b"/decline\r")
    display.shows("Permission rejected")
    quit_chat(display)


def test_a_message_that_is_typed_while_the_agent_asks_answers_nothing(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"sleep 0.5\r")
    display.shows("> sleep 0.5")
    display.type(b"permission\ry")  # sent after the first; the y is typed before the agent asks
    display.shows("> y")
    display.shows("[n]o?", gone="> y")
    display.type(b"n\r")
    display.shows("Permission rejected", "> y")
    display.type(b"\x15")
    quit_chat(display)


def test_a_question_is_asked(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"question\r")
    display.shows("question  What shall I paint?", "1. Red: like a rose", "Color?")
    display.type(b"2\r")
    display.shows("Sizes?")
    display.type(b"s, 3\r")
    display.shows("Note?")
    display.type(b"\r")
    display.shows('"content":{"color":"#00f","sizes":["S","L"]}')
    quit_chat(display)


def test_ctrl_c_cancels_the_turn_and_the_chat_continues(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"stall\r")
    display.shows("> stall", "1 running")
    display.type(b"\x03")
    display.shows("stopped: cancelled", "ready")
    display.type(b"echo on\r")
    display.shows("\non\n")
    display.type(b"\x03")
    display.shows("nothing is running")
    display.type(b"\x04")
    assert display.end()[0] == 0


def test_lines_are_joined_by_a_backslash_or_alt_enter(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"echo one\\\rtwo\x1b\rthree\r")
    display.shows("\none\ntwo\nthree\n")
    quit_chat(display)


def test_an_agent_does_not_control_the_terminal(chat: Open) -> None:
    display = chat("-a", "claude")
    display.type(b"escape\r")
    display.shows("]0;ownedred")
    quit_chat(display)
    assert b"\x1b]0;owned" not in display.written


def test_model_and_mode_are_switched(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"/model\r")
    display.shows("* mock ", "  mock-fast")
    display.type(b"/model mock-fast\r")
    display.shows("model  mock-fast")
    display.type(b"/model huge\r")
    display.shows("Allowed values: mock, mock-fast")
    display.type(b"/mode plan\r")
    display.shows("mode   plan\n", "plan  mock-fast")
    display.type(b"/permissions read_only\r")
    display.shows("permissions  read_only")
    display.type(b"/nothing\r")
    display.shows("no command /nothing")
    display.type(b" /nothing\r")
    display.shows("You said: /nothing")
    quit_chat(display)


def test_commands_are_completed(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"/mod")
    display.shows("list the models, or switch to one")
    display.type(b"el mock-f")
    display.shows("mock-fast  Mock Fast")
    display.type(b"\t")
    display.shows("\n> /model mock-fast")
    display.type(b"\r\r")
    display.shows("model  mock-fast")
    quit_chat(display)


def test_several_sessions_run_at_once(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"permission\r")
    display.shows("Write hello.txt: [y]es")
    display.type(b"/new\r")
    display.shows("[2] mock  session ")
    display.type(b"echo second\r")
    display.shows("\nsecond\n")
    display.type(b"/sessions\r")
    display.shows("[1] mock  asks", "* [2] mock")
    display.type(b"/switch 1\r")
    display.shows("[y]es / [a]lways / [n]o?")
    display.type(b"y\r")
    display.shows("Permission granted")
    display.type(b"stall\r")
    display.shows("> stall")
    display.type(b"/switch\r")
    display.type(b"permission\r")
    display.shows("> permission")
    quit_chat(display)


def test_a_session_that_is_not_shown_announces_its_end_and_its_permission_request(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"sleep 1\r")
    display.shows("> sleep 1")
    display.type(b"permission\r/new\r")  # the second message waits for the first
    display.shows("[2] mock  session ")
    display.shows("[1] mock has ended its turn: end_turn", "[1] mock asks for permission: Write hello.txt")
    display.type(b"/switch 1\r")
    display.shows("I slept 1 s.", "[n]o?")
    display.type(b"n\r")
    display.shows("Permission rejected")
    quit_chat(display)


def test_a_chat_is_continued_from_its_own_store(chat: Open, shell: Shell) -> None:
    display = chat("-a", "mock")
    display.type(b"echo remember\r")
    display.shows("\nremember\n")
    quit_chat(display)
    folder = shell.folder / "data/sandbox-agent/cli"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("history", "sessions.db"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    display = chat("--continue")
    display.shows("> echo remember\nremember\n")
    display.type(b"\x1b[A\x1b[A\r")  # the history: /quit, and before it the message
    display.shows("5 events\n> echo remember\nremember\n")
    quit_chat(display)


def test_a_session_of_the_store_is_resumed(chat: Open, shell: Shell) -> None:
    shell.run("run", "echo before", "-a", "mock", "--store", "s.db")
    (record,) = json.loads(shell.run("sessions", "list", "--store", "s.db", "--json").stdout)["items"]
    display = chat("-a", "mock", "--store", "s.db")
    display.type(b"/sessions\r")
    display.shows(record["id"])
    display.type(f"/resume {record['id']}\r".encode())
    display.shows("> echo before\nbefore\n", "[2] mock  session ")
    display.type(b"/resume unknown\r")
    display.shows("unknown")
    quit_chat(display)


def test_files_are_sent_with_the_next_message(chat: Open, shell: Shell) -> None:
    (shell.folder / "notes.txt").write_text("some notes")
    display = chat("-a", "mock")
    display.type(b"/file missing.txt\r")
    display.shows("there is no file 'missing.txt'")
    display.type(b"/file notes.txt\r")
    display.shows("notes.txt is sent with the next message", "1 files attached")
    display.type(b"echo seen\r")
    display.shows("I was also sent resource", "\nseen\n")
    quit_chat(display)


def test_a_lost_server_is_shown_and_the_next_message_restores_the_session(chat: Open, shell: Shell) -> None:
    display = chat("-a", "mock")
    display.type(b"stall\r")
    display.shows("> stall")
    os.kill(server_of(display.child.pid), signal.SIGKILL)
    display.shows("connection lost: ")
    display.type(b"echo again\r")
    display.shows("restored  ", "\nagain\n")
    quit_chat(display)


def server_of(parent: int) -> int:
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    children = {pid for pid, ppid, _ in rows if ppid == str(parent)}
    (pid,) = [int(pid) for pid, ppid, args in rows if ppid in {str(parent), *children} and " server" in args]
    return pid


def test_sigterm_ends_the_chat(chat: Open) -> None:
    display = chat("-a", "mock")
    display.type(b"stall\r")
    display.shows("1 running")
    display.child.terminate()
    assert display.end()[0] == 128 + signal.SIGTERM


def test_quit_cancels_what_runs(chat: Open, shell: Shell) -> None:
    display = chat("-a", "mock", "--store", "s.db")
    display.type(b"stall\r")
    display.shows("1 running")
    quit_chat(display)
    (record,) = json.loads(shell.run("sessions", "list", "--store", "s.db", "--json").stdout)["items"]
    last = shell.run("sessions", "export", record["id"], "--store", "s.db").stdout.splitlines()[-1]
    assert json.loads(last)["payload"]["result"]["stopReason"] == "cancelled"


def test_a_chat_needs_a_terminal(shell: Shell) -> None:
    done = shell.run("chat", "-a", "mock")
    assert done.returncode == 2
    assert "use 'sandbox-agent run PROMPT --continue'" in done.stderr


@pytest.mark.parametrize(
    ("words", "name"), [(["chat", "-a", "mock"], "chat"), (["sessions", "browse"], "sessions browse")]
)
def test_a_missing_extra_is_named(shell: Shell, words: list[str], name: str) -> None:
    (shell.folder / "sitecustomize.py").write_text("import sys\nsys.modules['prompt_toolkit'] = None\n")
    done = shell.run(*words, env={"PYTHONPATH": str(shell.folder)})
    assert done.returncode == 1
    assert done.stderr == (
        f"sandbox-agent: sandbox-agent {name} needs the extra 'cli': "
        'install it with pip install "sandbox-agent-py[cli]"\n'
    )
