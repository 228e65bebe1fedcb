"""``sandbox-agent sessions export``, ``import`` and ``move``."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import anyio
import pytest

from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.open import KEY_VARIABLE, open_driver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from tests.cli.conftest import COMMAND, Shell

EVENTS = 4_000
KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="


async def fill(path: Path, events: int = 3) -> None:
    """Make three sessions; b has a hole."""
    driver = SQLiteSessionPersistDriver(path)
    for number, name in enumerate("abc"):
        await driver.update_session(make_session(name, created_at=number, session_init={"cwd": "/"}))
        await driver.append_events(name, [make_event(f"{name}{at}", name) for at in range(events)])
    await driver.insert_event("b", make_event("late", "b", events + 7))
    await driver.close()


async def read(url: str | Path) -> list[object]:
    """Return all that is in a store."""
    driver = open_driver(str(url))
    try:
        return await content(driver)
    finally:
        await driver.close()


async def content(driver: SessionPersistDriver) -> list[object]:
    found: list[object] = []
    for record in await all_sessions(driver):
        events = await all_events(driver, record.id, limit=1_000)
        found.append((record, [(event.id, event.event_index, event.payload_json) for event in events]))
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "from.db"
    anyio.run(fill, path)
    return path


def test_sessions_go_into_a_file_and_out_of_it(store: Path, shell: Shell, tmp_path: Path) -> None:
    exported = tmp_path / "all.jsonl"
    assert shell.run("sessions", "export", "--all", "--store", store, "-o", exported).returncode == 0
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    assert [line["record"]["id"] for line in lines if "record" in line] == ["a", "b", "c"]
    assert [line["id"] for line in lines[1:4]] == ["a0", "a1", "a2"]
    assert lines[-1] == {"end": {"sessions": 3, "events": 10}}
    target = tmp_path / "to.db"
    done = shell.run("sessions", "import", exported, "--into", target)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"imported 3 sessions, 10 events into {target}\n"
    assert anyio.run(read, target) == anyio.run(read, store)
    again = shell.run("sessions", "import", "-", "--into", f"sqlite:{target}", stdin=exported.read_text())
    assert again.stderr == f"imported 3 sessions, 0 events into {target}; 10 more were already there\n"
    assert anyio.run(read, target) == anyio.run(read, store)


def test_one_session_is_exported_with_its_record_where_that_is_asked_for(store: Path, shell: Shell) -> None:
    events = shell.run("sessions", "export", "a", "--store", store).stdout.splitlines()
    with_record = shell.run("sessions", "export", "a", "--store", store, "--with-record").stdout.splitlines()
    assert with_record[1:-1] == events
    assert json.loads(with_record[0])["record"]["sessionInit"] == {"cwd": "/"}
    two = shell.run("sessions", "export", "c", "a", "--store", store).stdout.splitlines()
    assert [json.loads(line)["record"]["id"] for line in two if line.startswith('{"record"')] == ["c", "a"]


def test_an_export_says_which_sessions(store: Path, shell: Shell, tmp_path: Path) -> None:
    for words in ([], ["a", "--all"]):
        done = shell.run("sessions", "export", *words, "--store", store)
        assert done.returncode == 2
        assert "pass session ids or --all" in done.stderr
    target = tmp_path / "out"
    done = shell.run("sessions", "export", "a", "nobody", "--store", store, "-o", target)
    assert done.returncode == 66
    assert "session 'nobody' not found" in done.stderr
    assert not target.exists()


def test_events_alone_are_imported_for_an_agent_that_is_named(
    store: Path, shell: Shell, tmp_path: Path
) -> None:
    lines = shell.run("sessions", "export", "a", "--store", store).stdout
    done = shell.run("sessions", "import", "-", "--into", tmp_path / "to.db", "--agent", "mock", stdin=lines)
    assert done.returncode == 0
    listed = shell.run("sessions", "list", "--store", tmp_path / "to.db").stdout.splitlines()
    assert listed[1].split()[:2] == ["a", "mock"]


def test_a_damaged_export_is_reported_with_its_line(store: Path, shell: Shell, tmp_path: Path) -> None:
    lines = shell.run("sessions", "export", "--all", "--store", store).stdout.splitlines()
    broken = "\n".join([*lines[:3], lines[3][:-9], *lines[4:]])
    done = shell.run("sessions", "import", "-", "--into", tmp_path / "to.db", stdin=broken)
    assert done.returncode == 64
    assert done.stderr.startswith("sandbox-agent: line 4 can't be imported, ")
    assert "the 2 events in the lines before it are in the store" in done.stderr
    done = shell.run("sessions", "import", "-", "--into", tmp_path / "to.db", stdin="\n".join(lines[:-1]))
    assert "1 more" not in done.stderr
    assert done.stderr.endswith("the export has no final line: it may be truncated\n")
    assert anyio.run(read, tmp_path / "to.db") == anyio.run(read, store)


def test_move_takes_sessions_from_one_store_into_another(store: Path, shell: Shell, tmp_path: Path) -> None:
    expected = anyio.run(read, store)
    target = tmp_path / "to.db"
    copied = shell.run("sessions", "move", "a", "--from", store, "--to", target, "--keep")
    assert copied.returncode == 0
    assert copied.stderr.startswith(f"copied 1 session into {target}: 3 events stored, ends compared, ")
    assert anyio.run(read, store) == expected
    moved = shell.run("sessions", "move", "--from", f"sqlite:{store}", "--to", target, "--verify")
    assert moved.stderr.startswith(f"moved 3 sessions into {target}: 7 events stored, ")
    assert "every byte compared" in moved.stderr
    assert anyio.run(read, target) == expected
    assert anyio.run(read, store) == []


def test_a_store_is_encrypted_by_moving_it(
    store: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = anyio.run(read, store)
    url = f"encrypted+sqlite:{tmp_path / 'to.db'}"
    refused = shell.run("sessions", "move", "--from", store, "--to", url)
    assert refused.returncode == 64
    assert f"set {KEY_VARIABLE}" in refused.stderr
    moved = shell.run("sessions", "move", "--from", store, "--to", url, env={KEY_VARIABLE: KEY})
    assert moved.returncode == 0
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert anyio.run(read, url) == expected
    shown = shell.run("sessions", "list", "--store", url, env={KEY_VARIABLE: KEY})
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["ID", "a", "b", "c"]


def test_a_store_that_cannot_be_moved_is_left_as_it_is(store: Path, shell: Shell, tmp_path: Path) -> None:
    expected = anyio.run(read, store)
    (tmp_path / "link.db").symlink_to(store)
    same = shell.run("sessions", "move", "--from", store, "--to", tmp_path / "link.db")
    assert same.returncode == 64
    assert "are the same store" in same.stderr
    missing = shell.run("sessions", "move", "--from", tmp_path / "none.db", "--to", tmp_path / "to.db")
    assert missing.returncode == 2
    assert not (tmp_path / "none.db").exists()
    unknown = shell.run("sessions", "move", "--from", store, "--to", "mysql://root:hunter2@h/d")
    assert unknown.returncode == 2
    assert "no store is known for 'mysql:'" in unknown.stderr
    assert "hunter2" not in unknown.stderr
    assert anyio.run(read, store) == expected


@pytest.mark.parametrize("keep", [True, False], ids=["copy", "move"])
@pytest.mark.soak
def test_a_move_that_is_killed_again_and_again_ends_exactly_equal(
    shell: Shell, tmp_path: Path, keep: bool
) -> None:
    source, target = tmp_path / "from.db", tmp_path / "to.db"
    anyio.run(fill, source, EVENTS)
    expected = anyio.run(read, source)
    words = ["sessions", "move", "--from", source, "--to", target, *(["--keep"] if keep else [])]
    kills = 0
    for size in (60_000, 400_000, 1_000_000, 1_800_000):
        process = shell.start(*words)
        # Killed when that much is written, or wherever it is when it ends.
        while process.poll() is None and written(target) < size:
            os.sched_yield()
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    done = shell.run(*words, "--verify")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert anyio.run(read, target) == expected
    assert anyio.run(read, source) == (expected if keep else [])


def written(path: Path) -> int:
    """Return how much of an SQLite file there is, its log included."""
    total = 0
    for name in (path, path.with_name(path.name + "-wal")):
        if name.exists():
            total += name.stat().st_size
    return total


def test_two_moves_at_once_end_with_each_event_once(shell: Shell, tmp_path: Path) -> None:
    source, target = tmp_path / "from.db", tmp_path / "to.db"
    anyio.run(fill, source, EVENTS)
    expected = anyio.run(read, source)
    both = [shell.start("sessions", "move", "--from", source, "--to", target, "--keep") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert anyio.run(read, target) == expected


def test_a_terminal_sees_a_bar(store: Path, shell: Shell, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [*COMMAND, "sessions", "move", "--from", str(store), "--to", str(tmp_path / "to.db"), "--keep"],
            env={**shell.env, "TERM": "xterm"},
            stderr=slave,
            cwd=shell.folder,
        )
        assert process.wait(timeout=60) == 0
        shown = os.read(master, 65_536).decode()
    finally:
        os.close(slave)
        os.close(master)
    assert "copying 3 sessions  [" in shown
    assert "100%" in shown
    assert "copied 3 sessions into" in shown


@pytest.mark.parametrize(
    "words",
    [
        ("run", "echo hello", "-a", "mock", "--store"),
        ("sessions", "import", "-", "--into"),
        ("sessions", "move", "--from", "from.db", "--to"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "encrypted+sqlite:"])
def test_file_of_a_server_is_refused_before_anything_is_done(
    store: Path, shell: Shell, words: tuple[str, ...], prefix: str
) -> None:
    async def make() -> None:
        thread = SQLiteThread(shell.folder / "server.db")
        await SQLiteSessionStore(thread, thread).open()
        await thread.close()

    anyio.run(make)
    before = anyio.run(read, store)
    done = shell.run(*words, f"{prefix}server.db", env={KEY_VARIABLE: KEY})
    assert done.returncode == 64
    assert done.stdout == ""
    assert "server.db' is a server's own store, which only that server may write" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert anyio.run(read, store) == before
