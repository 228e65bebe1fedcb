"""``sandbox-agent demo``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox_agent.cli.demo import events_agree
from sandbox_agent.wire.records import SessionEvent
from tests.cli.conftest import Shell


def test_the_demo_survives_its_killed_server_and_counts_equal(shell: Shell, tmp_path: Path) -> None:
    done = shell.run("demo", "--folder", tmp_path / "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(sent|stored|seen) +(\d+) ", done.stdout, flags=re.MULTILINE))
    assert set(counts) == {"sent", "stored", "seen"}
    assert len(set(counts.values())) == 1
    assert int(counts["sent"]) > 40
    order = [
        "allowed once, by the demo",
        "000040 ",
        "SIGKILL to the server",
        "the prompt failed",
        "restored  in a new agent session",
        "\nHere I am again",
        "Equal",
    ]
    places = [done.stdout.index(words) for words in order]
    assert places == sorted(places)
    assert "000400" not in done.stdout


def event(index: int, payload: bytes = b"{}", sender: str = "agent") -> SessionEvent:
    return SessionEvent(str(index), index, "s", 0, "c", "agent" if sender == "agent" else "client", payload)


def test_the_count_agrees_when_all_three_are_the_same() -> None:
    events = [event(1, b"1"), event(2, b"2"), event(3, b"mine", "client")]
    assert events_agree([b"1", b"2"], events, events)


@pytest.mark.parametrize(
    ("sent", "stored", "seen"),
    [
        ([b"1", b"2"], [event(1, b"1")], [event(1, b"1")]),
        ([b"1"], [event(1, b"1")], []),
        ([b"1"], [event(1, b"1")], [event(1, b"1"), event(1, b"1")]),
        ([b"1", b"2"], [event(1, b"2"), event(2, b"1")], [event(1, b"2"), event(2, b"1")]),
        ([b"1"], [event(1, b" 1")], [event(1, b" 1")]),
        ([b"1"], [event(2, b"1")], [event(2, b"1")]),
    ],
    ids=["not stored", "not seen", "seen twice", "out of order", "other bytes", "a gap in the numbers"],
)
def test_the_count_differs_when_one_of_them_does(
    sent: list[bytes], stored: list[SessionEvent], seen: list[SessionEvent]
) -> None:
    assert not events_agree(sent, stored, seen)


def test_the_demo_names_the_agent_that_is_not_there(shell: Shell) -> None:
    done = shell.run("demo", "--agent", "cursor", env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 69
    assert "put `cursor-agent-acp`" in done.stderr
    assert "Traceback" not in done.stderr
