"""``sandbox-agent sessions verify``."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from sandbox_agent.persist.open import KEY_VARIABLE, open_driver
from sandbox_agent.testing.drivers import make_event, make_session
from tests.cli.conftest import Shell

KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="


async def append(url: str, *names: str) -> None:
    """Append three events to each session."""
    driver = open_driver(url)
    for name in names:
        if await driver.get_session(name) is None:
            await driver.update_session(make_session(name))
        count = await driver.last_event_index(name)
        await driver.append_events(name, [make_event(f"{name}{count + one}", name) for one in (1, 2, 3)])
    await driver.close()


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.fixture(params=["encrypted+sqlite:", ""], ids=["encrypted", "plain"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with the sessions a and b."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    url = f"{request.param}{tmp_path / 'store.db'}"
    anyio.run(append, url, "a", "b")
    return url


def test_whole_sessions_are_reported_as_such(store: str, shell: Shell) -> None:
    done = shell.run("sessions", "verify", "--store", store)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "verified 2 sessions with 6 events: nothing is wrong\n"
    one = shell.run("sessions", "verify", "a", "--store", store)
    assert one.stderr == "verified 1 sessions with 3 events: nothing is wrong\n"
    missing = shell.run("sessions", "verify", "a", "z", "--store", store)
    assert (missing.returncode, missing.stdout) == (1, "z: it is not in the store\n")


def test_a_hole_is_named_and_the_exit_code_is_1(store: str, shell: Shell, tmp_path: Path) -> None:
    execute(tmp_path / "store.db", "DELETE FROM events WHERE id = 'b2'")
    done = shell.run("sessions", "verify", "--store", store)
    assert done.returncode == 1
    assert done.stdout == "b: event 2 is missing before event 3\n"
    assert done.stderr == "verified 2 sessions with 5 events: 1 problem\n"
    assert shell.run("sessions", "verify", "a", "--store", store).returncode == 0


def test_a_cut_tail_shows_in_an_encrypted_session_by_itself(store: str, shell: Shell, tmp_path: Path) -> None:
    execute(tmp_path / "store.db", "DELETE FROM events WHERE id IN ('b2', 'b3')")
    done = shell.run("sessions", "verify", "--store", store)
    if store.startswith("encrypted"):
        assert (done.returncode, done.stdout) == (1, "b: events 2 to 3 are missing at the end\n")
    else:
        assert (done.returncode, done.stdout) == (0, "")


def test_an_older_copy_of_the_store_shows_against_the_file_of_heads(
    store: str, shell: Shell, tmp_path: Path
) -> None:
    heads = tmp_path / "heads.json"
    refused = shell.run("sessions", "verify", "--store", store, "--head", heads)
    assert refused.returncode != 0
    assert "does not exist: use --write-head to create it" in refused.stderr
    assert shell.run("sessions", "verify", "--store", store, "--head", heads, "--write-head").returncode == 0
    first = json.loads(heads.read_text())
    assert {name: head["last"] for name, head in first["sessions"].items()} == {"a": 3, "b": 3}
    shutil.copy(tmp_path / "store.db", tmp_path / "older.db")
    anyio.run(append, store, "a", "c")
    # Nothing is wrong, so the file is updated.
    assert shell.run("sessions", "verify", "--store", store, "--head", heads).returncode == 0
    second = heads.read_bytes()
    assert {name: head["last"] for name, head in json.loads(second)["sessions"].items()} == {
        "a": 6,
        "b": 3,
        "c": 3,
    }
    shutil.copy(tmp_path / "older.db", tmp_path / "store.db")
    done = shell.run("sessions", "verify", "--store", store, "--head", heads)
    assert done.returncode == 1
    older, gone = done.stdout.splitlines()
    assert older.startswith(
        "a: it ends with event 3, and ended with event 6 before: the later ones are missing"
    )
    assert gone == "c: it has no events: it was deleted, or the store was set back"
    assert heads.read_bytes() == second
    # A single session leaves the heads of the others in the file.
    assert shell.run("sessions", "verify", "b", "--store", store, "--head", heads).returncode == 0
    assert json.loads(heads.read_bytes()) == json.loads(second)
    # Accepted, because it was done on purpose.
    assert shell.run("sessions", "verify", "--store", store, "--head", heads, "--write-head").returncode == 0
    assert json.loads(heads.read_text()) == first


def test_a_changed_event_shows_against_the_file_of_heads(store: str, shell: Shell, tmp_path: Path) -> None:
    heads = tmp_path / "heads.json"
    shell.run("sessions", "verify", "--store", store, "--head", heads, "--write-head")
    execute(tmp_path / "store.db", "UPDATE events SET created_at = created_at + 1 WHERE id = 'a1'")
    done = shell.run("sessions", "verify", "--store", store, "--head", heads)
    assert done.returncode == 1
    assert (
        "a: its events up to 3 are not those of before: one was changed, removed or put back" in done.stdout
    )
    assert store.startswith("encrypted") == (
        "a: event 1 ('a1') was changed, or moved from another place" in done.stdout
    )


def test_a_damaged_file_of_heads_is_refused(store: str, shell: Shell, tmp_path: Path) -> None:
    heads = tmp_path / "heads.json"
    for content, message in (
        ("{}", "can't be read as a file of heads"),
        ('{"form":"x","sessions":{}}', "form 'x'"),
    ):
        heads.write_text(content)
        done = shell.run("sessions", "verify", "--store", store, "--head", heads)
        assert done.returncode not in (0, 1)
        assert message in done.stderr
        assert heads.read_text() == content
    assert (
        "--write-head needs --head"
        in shell.run("sessions", "verify", "--store", store, "--write-head").stderr
    )
