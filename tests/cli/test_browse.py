"""``sandbox-agent sessions browse``, on a terminal."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Shell
from tests.cli.pseudo_terminals import Display


@pytest.fixture
def store(shell: Shell) -> str:
    """A store with two sessions."""
    for text in ("first apple", "second banana"):
        assert shell.run("run", f"echo {text}", "-a", "mock", "--store", "s.db").returncode == 0
    return "s.db"


def ids(shell: Shell) -> list[str]:
    listed = shell.run("sessions", "list", "--store", "s.db", "--json").stdout
    return [record["id"] for record in json.loads(listed)["items"]]


def leave(display: Display) -> None:
    display.type(b"\x03")
    assert display.end()[0] == 0


def test_sessions_are_listed_searched_and_previewed(shell: Shell, store: str) -> None:
    first, second = ids(shell)
    display = Display(shell, "sessions", "browse", "--store", store)
    text = display.shows("mock echo first apple", "mock echo second banana", f"session {second}")
    assert text.index("mock echo second") < text.index("mock echo first")  # the newest is the first
    display.shows("> echo second banana", "second banana")
    display.type(b"\x1b[B")
    display.shows(f"session {first}", "> echo first apple")
    display.type(b"BANANA mock")
    display.shows("1 of 2 sessions", f"session {second}", gone="echo first")
    display.type(b" cherry")
    display.shows("no session is found", "0 of 2 sessions")
    display.type(b"\r\x1b[3~\x05")  # nothing is selected
    leave(display)


def test_a_session_is_exported_once(shell: Shell, store: str) -> None:
    _, second = ids(shell)
    display = Display(shell, "sessions", "browse", "--store", store)
    display.shows(f"session {second}")
    display.type(b"\x05")
    display.shows(f"exported to '{second}.jsonl'")
    exported = (shell.folder / f"{second}.jsonl").read_text()
    assert exported == shell.run("sessions", "export", second, "--with-record", "--store", store).stdout
    display.type(b"\x05")
    display.shows("exists: move it away")
    leave(display)


def test_a_session_is_deleted_after_a_confirmation(shell: Shell, store: str) -> None:
    first, second = ids(shell)
    display = Display(shell, "sessions", "browse", "--store", store)
    display.shows(f"session {second}")
    display.type(b"\x1b[3~")
    display.shows(f"delete {second} with its history?")
    display.type(b"n")
    display.shows("2 of 2 sessions")
    display.type(b"\x1b[3~")
    display.shows("with its history?")
    display.type(b"\r")
    display.shows("2 of 2 sessions")
    assert ids(shell) == [first, second]
    display.type(b"\x1b[3~")
    display.shows("with its history?")
    display.type(b"y")
    display.shows(f"deleted {second}", f"session {first}", gone="echo second")
    assert ids(shell) == [first]
    leave(display)


def test_a_session_is_opened_in_a_chat(shell: Shell, store: str) -> None:
    first, second = ids(shell)
    display = Display(shell, "sessions", "browse", env={"SANDBOX_AGENT_STORE": store})
    display.shows(f"session {second}")
    display.type(b"\x1b[B")
    display.shows(f"session {first}")
    display.type(b"\r")
    display.shows("Enter sends", "> echo first apple", gone="echo second")
    display.type(b"echo third\r")
    display.shows("\nthird\n")
    display.type(b"/quit\r")
    assert display.end()[0] == 0


def test_what_a_store_has_does_not_control_the_terminal(shell: Shell) -> None:
    assert shell.run("run", "escape", "-a", "claude", "--store", "s.db").returncode == 0
    display = Display(shell, "sessions", "browse", "--store", "s.db")
    display.shows("]0;ownedred")
    leave(display)
    assert b"\x1b]0;owned" not in display.written


def test_the_store_of_chat_is_the_default(shell: Shell) -> None:
    display = Display(shell, "sessions", "browse")
    code, said = display.end()
    assert code == 2
    assert b"there are no sessions of 'sandbox-agent chat' yet" in said


def test_without_a_terminal_other_commands_are_named(shell: Shell, store: str) -> None:
    done = shell.run("sessions", "browse", "--store", store)
    assert done.returncode == 2
    assert "use 'sandbox-agent sessions list' and 'sessions show ID'" in done.stderr
