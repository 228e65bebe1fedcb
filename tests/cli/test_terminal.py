"""Tables: by rich on a terminal, plain elsewhere and without rich."""

from __future__ import annotations

import io
import sys

import pytest

from sandbox_agent.cli.output import print_table

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
