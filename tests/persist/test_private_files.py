"""What is stored can be read by its owner only, whatever the umask is."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from sandbox_agent.agents.mock.sessions import SessionStore
from sandbox_agent.client.sinks.sqlite import SQLiteSink
from sandbox_agent.errors import PersistError
from sandbox_agent.persist import private
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.providers.local import local
from sandbox_agent.server.store import default_namespace, open_store
from sandbox_agent.testing.drivers import all_events, make_event

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")]


@pytest.fixture(params=[0o000, 0o777], ids=["open umask", "closed umask"], autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """The most open and the most closed umask."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is not there yet, in another one that is not."""
    return tmp_path / "outer" / "inner"


def modes(folder: Path) -> dict[str, str]:
    """Return the mode of each file."""
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in sorted(folder.iterdir())}


def assert_folders_are_private(folder: Path) -> None:
    assert modes(folder.parent.parent) == {"outer": "700"}
    assert modes(folder.parent) == {"inner": "700"}


async def test_a_store_of_the_sdk_is_private_with_its_log(folder: Path) -> None:
    driver = SQLiteSessionPersistDriver(folder / "sessions.db")
    await driver.append_events("s", [make_event("a")])
    assert [event.id for event in await all_events(driver, "s")] == ["a"]
    assert_folders_are_private(folder)
    assert modes(folder) == {"sessions.db": "600", "sessions.db-shm": "600", "sessions.db-wal": "600"}
    await driver.close()
    assert modes(folder) == {"sessions.db": "600"}


async def test_a_store_of_the_server_is_private_with_its_log_and_its_lock(folder: Path) -> None:
    async with open_store(f"sqlite:{folder / 'server.db'}"):
        assert_folders_are_private(folder)
        names = ("server.db", "server.db-shm", "server.db-wal", "server.db.lock")
        assert modes(folder) == dict.fromkeys(names, "600")


async def test_a_mirror_is_private(folder: Path) -> None:
    sink = SQLiteSink(folder / "mirror.db")
    assert await sink.last_sequence("s") == 0
    assert_folders_are_private(folder)
    assert set(modes(folder).values()) == {"600"}
    await sink.close()


async def test_the_log_of_a_local_server_is_private(folder: Path) -> None:
    provider = local(log=folder / "server.log", args=["--no-such-option"])
    with pytest.raises(Exception, match="exited with code"):
        await provider.create()
    assert_folders_are_private(folder)
    assert modes(folder) == {"server.log": "600"}


def test_the_namespace_of_this_machine_is_private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    assert default_namespace() == default_namespace()
    assert_folders_are_private(folder)
    assert modes(folder) == {"sandbox-agent": "700"}
    assert set(modes(folder / "sandbox-agent").values()) == {"600"}


def test_the_journals_of_the_mock_agent_are_private(folder: Path) -> None:
    # A umask that takes the owner's own rights is not for programs that read what they wrote.
    os.umask(0)
    SessionStore(str(folder)).create("/")
    assert modes(folder.parent) == {"inner": "700"}
    assert set(modes(folder).values()) == {"600"}


async def test_a_file_behind_a_link_that_leads_nowhere_is_made_private(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "target.db")
    driver = SQLiteSessionPersistDriver(tmp_path / "link.db")
    await driver.append_events("s", [make_event("a")])
    assert modes(tmp_path)["target.db"] == "600"
    await driver.close()


async def test_files_of_an_older_release_are_tightened_with_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sandbox_agent.persist")
    path = tmp_path / "sessions.db"
    first = SQLiteSessionPersistDriver(path)
    await first.append_events("s", [make_event("a")])
    for name in ("sessions.db", "sessions.db-wal", "sessions.db-shm"):
        (tmp_path / name).chmod(0o644)
    os.chmod(tmp_path, 0o755)  # noqa: PTH101 - blocks for no longer than the others
    second = SQLiteSessionPersistDriver(path)
    await second.append_events("s", [make_event("b")])
    assert set(modes(tmp_path).values()) == {"600"}
    # A folder that was there stays as it is.
    assert modes(tmp_path.parent)[tmp_path.name] == "755"
    third = SQLiteSessionPersistDriver(path)
    assert len(await all_events(third, "s")) == 2
    for driver in (first, second, third):
        await driver.close()
    (line,) = [record.getMessage() for record in caplog.records if "other users" in record.getMessage()]
    assert "sessions.db, sessions.db-wal, sessions.db-shm" in line
    assert "(mode 644)" in line


async def test_a_lock_of_an_older_release_is_tightened(tmp_path: Path) -> None:
    lock = tmp_path / "server.db.lock"
    lock.touch()
    lock.chmod(0o666)
    async with open_store(f"sqlite:{tmp_path / 'server.db'}"):
        assert modes(tmp_path)["server.db.lock"] == "600"


async def test_no_moment_passes_in_which_the_file_can_be_read_by_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite opens a file that is private already; what it makes beside it has the same mode."""
    seen: list[str] = []
    connect = sqlite3.connect

    def watched(path: str, **settings: object) -> sqlite3.Connection:
        if path == str(folder / "sessions.db"):
            seen.append(modes(folder)["sessions.db"])
        return connect(path, **settings)  # pyright: ignore[reportCallIssue, reportArgumentType, reportUnknownVariableType] - as it was called

    monkeypatch.setattr(sqlite3, "connect", watched)
    driver = SQLiteSessionPersistDriver(folder / "sessions.db")
    await driver.append_events("s", [make_event("a")])
    await driver.close()
    assert seen == ["600"]


async def test_what_is_no_regular_file_keeps_its_mode(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    private.tighten([pipe, tmp_path / "missing"])
    assert modes(tmp_path) == {"pipe": "666"}


async def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    driver = SQLiteSessionPersistDriver(tmp_path / "file" / "inner" / "sessions.db")
    with pytest.raises(PersistError, match=r"the store's folder .* can't be made"):
        await driver.last_event_index("s")
    await driver.close()


async def test_a_file_that_cannot_be_tightened_is_used_and_named_in_the_log_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sessions.db"
    with closing(sqlite3.connect(path)):
        path.touch(mode=0o644)
        path.chmod(0o644)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    for name in ("a", "b"):
        driver = SQLiteSessionPersistDriver(path)
        await driver.append_events("s", [make_event(name)])
        await driver.close()
    lines = [record.getMessage() for record in caplog.records if "other users" in record.getMessage()]
    assert len([line for line in lines if str(path) in line]) == 1
    assert await anyio.Path(path).exists()
