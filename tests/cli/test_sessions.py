"""``sandbox-agent sessions``."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent, SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import make_session
from tests.cli.conftest import Shell
from tests.support.servers import our_server


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the sessions a, b and c."""
    path = tmp_path / "sessions.db"
    with our_server(tmp_path) as server:
        anyio.run(fill, path, server.url)
    return path


async def fill(path: Path, url: str) -> None:
    """Make the sessions."""
    driver = SQLiteSessionPersistDriver(path)
    async with SandboxAgent.connect(base_url=url, persist=driver) as sdk:
        for name in ("a", "b", "c"):
            session = await sdk.create_session(agent="mock", id=name, permission_policy="allow_once")
            await session.prompt(f"echo I am {name}.")
            if name == "c":
                await session.prompt("permission")
        await sdk.destroy_session("b")
    await driver.close()


@pytest.fixture
def events(store: Path, shell: Shell) -> list[dict[str, object]]:
    """The exported events of c."""
    done = shell.run("sessions", "export", "c", "--store", store)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_list_shows_a_table_oldest_first(store: Path, shell: Shell) -> None:
    done = shell.run("sessions", "list", "--store", store)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ID", "a", "b", "c"]
    assert "destroyed" in done.stdout.splitlines()[2]
    assert done.stderr == ""


def test_list_pages_with_the_cursor_that_it_tells(store: Path, shell: Shell) -> None:
    first = shell.run("sessions", "list", "--store", store, "--limit", "2")
    assert first.stderr.startswith("more: --cursor ")
    cursor = first.stderr.split()[-1]
    second = shell.run("sessions", "list", "--store", store, "--limit", "2", "--cursor", cursor)
    assert [line.split()[0] for line in second.stdout.splitlines()] == ["ID", "c"]
    assert second.stderr == ""


def test_list_writes_one_json_object(store: Path, shell: Shell) -> None:
    page = json.loads(shell.run("sessions", "list", "--store", store, "--json", "--limit", "2").stdout)
    assert [item["id"] for item in page["items"]] == ["a", "b"]
    assert page["nextCursor"]
    rest = json.loads(
        shell.run("sessions", "list", "--store", store, "--json", "--cursor", page["nextCursor"]).stdout
    )
    assert [item["id"] for item in rest["items"]] == ["c"]
    assert rest["nextCursor"] is None


def test_a_folder_whose_name_is_not_utf_8_is_listed_as_json(shell: Shell) -> None:
    async def store() -> None:
        driver = SQLiteSessionPersistDriver(shell.folder / "s.db")
        record = make_session("s")
        record.session_init = {"cwd": "/\udcff"}
        await driver.update_session(record)
        await driver.close()

    anyio.run(store)
    page = json.loads(shell.run("sessions", "list", "--store", "s.db", "--json").stdout)
    assert page["items"][0]["sessionInit"] == {"cwd": "/\udcff"}


def test_show_is_a_transcript(store: Path, shell: Shell) -> None:
    lines = shell.run("sessions", "show", "c", "--store", store).stdout.splitlines()
    assert lines[0].startswith("session c  agent mock  created ")
    assert lines[1:] == [
        "> echo I am c.",
        "I am c.",
        "> permission",
        "tool   Write hello.txt: pending",
        "permission  allow_once",
        "tool   Write hello.txt: in_progress",
        "tool   Write hello.txt: completed",
        "Permission granted (allow_once): hello.txt is written.",
    ]


@pytest.mark.anyio
async def test_export_has_every_event_byte_for_byte(
    store: Path, shell: Shell, events: list[dict[str, object]]
) -> None:
    driver = SQLiteSessionPersistDriver(store)
    page = await driver.list_events("c")
    await driver.close()
    exported = shell.run("sessions", "export", "c", "--store", store).stdout
    assert [event["eventIndex"] for event in events] == [event.event_index for event in page.items]
    for line, event in zip(exported.splitlines(), page.items, strict=True):
        assert line.endswith(f'"payload":{event.payload_json.decode()}}}')


def test_export_writes_a_file_whole_or_not_at_all(store: Path, shell: Shell, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert shell.run("sessions", "export", "c", "--store", store, "-o", target).returncode == 0
    assert target.read_text() == shell.run("sessions", "export", "c", "--store", store).stdout
    assert [path.name for path in tmp_path.glob("out*")] == ["out.jsonl"]
    nowhere = tmp_path / "no-such-folder" / "out.jsonl"
    failed = shell.run("sessions", "export", "c", "--store", store, "-o", nowhere)
    assert failed.returncode == 74
    assert "can't be written: No such file or directory" in failed.stderr


@pytest.mark.parametrize("command", ["show", "export"])
def test_a_session_that_is_not_there_is_named(store: Path, shell: Shell, command: str) -> None:
    done = shell.run("sessions", command, "nobody", "--store", store)
    assert done.returncode == 66
    assert done.stderr.startswith("sandbox-agent: session 'nobody' not found")


def test_the_store_may_be_given_by_the_environment(store: Path, shell: Shell) -> None:
    assert shell.run("sessions", "list", env={"SANDBOX_AGENT_STORE": str(store)}).returncode == 0
    without = shell.run("sessions", "list")
    assert without.returncode == 2
    assert "Missing option '--store' (env var: 'SANDBOX_AGENT_STORE')" in without.stderr


def test_a_store_that_is_not_there_is_not_made(shell: Shell) -> None:
    assert shell.run("sessions", "list", "--store", "none.db").returncode == 2
    assert not (shell.folder / "none.db").exists()


@pytest.mark.anyio
async def test_a_session_of_an_absurd_time_is_listed_and_shown(shell: Shell) -> None:
    driver = SQLiteSessionPersistDriver(shell.folder / "absurd.db")
    for session_id, created_at in (("early", -(2**62)), ("late", 2**62)):
        await driver.update_session(make_session(session_id, created_at=created_at))
    await driver.close()
    listed = shell.run("sessions", "list", "--store", "absurd.db").stdout.splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [
        ["early", "mock", str(-(2**62)), "ms"],
        ["late", "mock", str(2**62), "ms"],
    ]
    assert shell.run("sessions", "show", "late", "--store", "absurd.db").returncode == 0
