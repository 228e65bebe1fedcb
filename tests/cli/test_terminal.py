"""Tables: by rich on a terminal, plain elsewhere and without rich."""

from __future__ import annotations

import io
import sys

import pytest

from sandbox_agent.cli.output import echo_document, print_table

ID = "a-long-session-id-" * 8
ROWS = [["a", "mock", "7", ""], ["b\x1b[2J[red]", "claude", "1,234", "destroyed"], [ID, "mock", "1", ""]]
PLAIN = f"""\
{"ID":<{len(ID)}}  AGENT   EVENTS
{"a":<{len(ID)}}  mock         7
{"b[2J[red]":<{len(ID)}}  claude   1,234  destroyed
{ID}  mock         1
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "80")
    print_table(["ID", "AGENT", "EVENTS", ""], ROWS, right=2)
    return stream.getvalue()


def test_a_table_in_a_pipe_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(io.StringIO(), monkeypatch) == PLAIN


def test_a_table_on_a_terminal_is_plain_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert printed(Terminal(), monkeypatch) == PLAIN


def test_a_table_on_a_terminal_fits_it_with_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = printed(Terminal(), monkeypatch)
    assert max(map(len, shown.splitlines())) <= 80
    assert "━" in shown or "─" in shown
    assert "b[2J[red]" in shown
    assert "\x1b[2J" not in shown
    assert "".join(line.split()[0] for line in shown.splitlines() if line.split()[:1]).count("long") == 8


class Stdout(io.TextIOWrapper):
    """A standard output that may be a terminal."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.written = io.BytesIO()
        super().__init__(self.written, encoding="utf-8")
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "shown"),
    [(True, "a[2Jb31m\tc\n"), (False, "a\x1b[2Jb\x9b31m\tc\x7f\n")],
)
def test_a_document_does_not_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, shown: str
) -> None:
    stdout = Stdout(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    echo_document("a\x1b[2Jb\x9b31m\tc\x7f".encode())
    stdout.flush()
    assert stdout.written.getvalue().decode() == shown
