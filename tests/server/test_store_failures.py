"""A store that fails: said in health, agents wait, nothing is lost, and all goes on once it works."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.server.store import open_store
from tests.chaos.chats import Chat, user_texts
from tests.server.talk import Talk, client_of, talk
from tests.server.test_death import agent_of
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

EVENTS = 30_000


async def health(talking: Talk) -> dict[str, Any]:
    found: dict[str, Any] = (await talking.client.get("/v1/health")).json()
    return found


async def until(condition: Callable[[dict[str, Any]], bool], talking: Talk) -> dict[str, Any]:
    """Ask for health until it says so."""
    with anyio.fail_after(60):
        while not condition(found := await health(talking)):
            pass
    return found


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the database's write lock, as a backup or a curious shell would."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def recover_from(talking: Talk, server: ServerProcess, *, restore: Callable[[], None]) -> None:
    """Fill the feed while the store fails, restore the store, and check that nothing is missing."""
    prompt = talking.start(f"burst {EVENTS} 100")
    degraded = await until(lambda found: found.get("store") == "degraded", talking)
    assert degraded["status"] == "ok"
    assert degraded["reason"]
    assert "\n" not in degraded["reason"]
    assert not prompt.done()
    assert server.memory() < 150_000_000
    restore()
    with anyio.fail_after(60):
        assert (await prompt).json()["result"]["stopReason"] == "end_turn"
        await until(lambda found: found == {"status": "ok"}, talking)
        async with talking.stream() as stream:
            await stream.until("end_turn")
    assert stream.ids == list(range(1, len(stream.ids) + 1))
    assert sum(b"agent_message_chunk" in event.data for event in stream.events) == EVENTS


async def test_a_locked_database_holds_the_agent_up_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with our_server(tmp_path, "--feed-memory-bytes", "100000", "--store", f"sqlite:{path}") as server:
        async with talk(server) as talking:
            lock = ExitStack()
            lock.enter_context(locked(path))
            await recover_from(talking, server, restore=lock.close)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("FULL DISK NOT TESTED: this user can't mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("store", ["sqlite", "memory"])
async def test_a_full_disk_holds_the_agent_up_and_loses_nothing(
    tmp_path: Path, small_disk: Path, store: str
) -> None:
    option = f"sqlite:{small_disk}/store.db" if store == "sqlite" else "memory"
    options = ("--feed-memory-bytes", "100000", "--store", option)

    def restore() -> None:
        subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)

    with our_server(tmp_path, *options, env={"TMPDIR": str(small_disk)}) as server:
        async with talk(server) as talking:
            await recover_from(talking, server, restore=restore)


@pytest.mark.soak
async def test_other_agents_and_delete_go_on_while_the_store_fails(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with our_server(tmp_path, "--feed-memory-bytes", "100000", "--store", f"sqlite:{path}") as server:
        async with talk(server) as talking, talk(server, "other") as other:
            with locked(path):
                prompt = talking.start(f"burst {EVENTS} 100")
                await until(lambda found: found.get("store") == "degraded", talking)
                listed = await other.client.get("/v1/acp")
                assert len(listed.json()["servers"]) == 2
                with anyio.fail_after(20):
                    assert (await talking.delete()).status_code == 204
                assert (await prompt).status_code == 500
            # what was too much is gone: nobody waits, and it says so
            await until(lambda found: found == {"status": "ok"}, other)
            await other.prompt(f"burst {EVENTS} 100")
            async with other.stream() as stream:
                await stream.until("end_turn")
            assert stream.ids == list(range(1, len(stream.ids) + 1))


@pytest.mark.soak
async def test_an_agent_that_dies_while_the_store_fails_leaves_a_store_that_recovers(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with our_server(tmp_path, "--feed-memory-bytes", "100000", "--store", f"sqlite:{path}") as server:
        async with talk(server) as talking:
            first = agent_of(server)
            other = Talk(talking.client, "other")
            await other.open()
            lock = ExitStack()
            lock.enter_context(locked(path))
            prompt = talking.start(f"burst {EVENTS} 100")
            await until(lambda found: found.get("store") == "degraded", talking)
            os.kill(first, signal.SIGKILL)
            assert (await prompt).status_code == 500
            lock.close()
            with anyio.fail_after(60):
                await other.prompt(f"burst {EVENTS} 100")
                await until(lambda found: found == {"status": "ok"}, other)
                for reader in (talking, other):
                    async with reader.stream() as stream:
                        await stream.until("agent_exited" if reader is talking else "end_turn")
                        assert stream.ids == list(range(1, len(stream.ids) + 1))


@pytest.mark.soak
async def test_health_says_so_when_nothing_but_a_message_has_met_the_store_and_recovers_by_itself(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    with our_server(tmp_path, "--store", f"sqlite:{path}") as server, anyio.fail_after(90):
        async with client_of(server) as client:
            chat = Chat(client, "idle")
            await chat.create()
            await chat.turn("echo before")
            with locked(path):
                refused = await chat.post("messages", "echo refused")
                assert refused.is_server_error
                assert str(tmp_path) not in refused.text
                found = (await client.get("/v1/health")).json()
                assert str(tmp_path) not in str(found)
                assert (found["status"], found["store"]) == ("ok", "degraded")
                assert "locked" in found["reason"]
                again = await chat.post("messages", "echo refused again")
                assert again.is_server_error
            while (await client.get("/v1/health")).json() != {"status": "ok"}:
                pass
            await chat.turn("echo after")
            assert user_texts(await chat.events()) == ["echo before", "echo after"]


@pytest.mark.soak
async def test_health_says_that_the_store_is_locked_while_nobody_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with our_server(tmp_path, "--store", f"sqlite:{path}") as server, anyio.fail_after(60):
        async with client_of(server) as client:

            async def health() -> dict[str, Any]:
                found: dict[str, Any] = (await client.get("/v1/health")).json()
                return found

            assert await health() == {"status": "ok"}
            with locked(path):
                while "store" not in (found := await health()):
                    pass
                assert (found["status"], found["store"]) == ("ok", "degraded")
                assert "is locked by another program" in found["reason"]
            while await health() != {"status": "ok"}:
                pass


@pytest.mark.soak
async def test_a_file_that_was_taken_away_is_reported_while_nobody_stores_anything(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with our_server(tmp_path, "--store", f"sqlite:{path}") as server, anyio.fail_after(60):
        async with client_of(server) as client:
            path.unlink()
            while (await client.get("/v1/health")).json().get("store") != "degraded":
                pass
            while "the store is degraded: the store" not in server.log.read_text():
                await client.get("/v1/health")


@pytest.mark.parametrize("path", ["/dev/null", "/tmp"])
async def test_a_store_that_is_not_a_file_is_refused(path: str) -> None:
    with pytest.raises(PersistError, match="is not a file"):
        async with open_store(f"sqlite:{path}"):
            pass
    assert not await anyio.Path(f"{path}.lock").exists()


async def test_a_store_is_waited_for(tmp_path: Path) -> None:
    store, opened = f"sqlite:{tmp_path / 'store.db'}", anyio.Event()

    async def open_next() -> None:
        async with open_store(store, wait=60):
            opened.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            async with open_store(store):
                tasks.start_soon(open_next)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(PersistError, match="belongs to another running server"):
                    async with open_store(store, wait=0.2):
                        pass
                assert not opened.is_set()
            await opened.wait()


async def test_a_store_under_another_name_belongs_to_the_server_that_has_it(tmp_path: Path) -> None:
    path, alias = tmp_path / "store.db", tmp_path / "elsewhere" / "alias.db"
    alias.parent.mkdir()
    alias.symlink_to(path)
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path)
    async with open_store(f"sqlite:{alias}"):
        for name in (path, folder / "store.db", alias):
            with pytest.raises(PersistError, match="belongs to another running server"):
                async with open_store(f"sqlite:{name}"):
                    pass
    async with open_store(f"sqlite:{path}"):
        pass
    (tmp_path / "hard.db").hardlink_to(path)
    for name in (path, tmp_path / "hard.db"):
        with pytest.raises(PersistError, match="several names"):
            async with open_store(f"sqlite:{name}"):
                pass
    loop = tmp_path / "loop.db"
    loop.symlink_to(loop)
    with pytest.raises(PersistError, match="can't be opened"):
        async with open_store(f"sqlite:{loop}"):
            pass


@pytest.mark.parametrize("store", ["sqlite:/proc/nowhere/x.db", "sqlite:/", "nosuch://x", "sqlite:"])
def test_a_store_that_cannot_be_is_refused_with_one_line(store: str) -> None:
    command = [
        sys.executable,
        "-m",
        "sandbox_agent.cli.main",
        "server",
        "--port",
        "0",
        "--no-token",
        "--store",
        store,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (64, 74)
    said = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert len(said) == 1, done.stderr
    assert "store" in said[0]
    assert "Traceback" not in done.stderr
