"""A store that is locked or full: writers are told, nothing acknowledged is lost, and it recovers."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.chaos.chats import Chat, JsonObject, user_texts
from tests.server.talk import client_of
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

SECONDS = 60

LOCKER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
database.execute(f"BEGIN {sys.argv[2]}")
print("locked", flush=True)
sys.stdin.read()
database.execute("ROLLBACK")
"""


@contextmanager
def locked(path: Path, how: str) -> Generator[Callable[[], None]]:
    """Let another process hold a lock until the yielded function is called."""
    command = [sys.executable, "-c", LOCKER, str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == b"locked\n"

        def release() -> None:
            if locker.poll() is None:
                locker.communicate(timeout=30)
            assert locker.returncode == 0

        try:
            yield release
        finally:
            release()


async def health(chat: Chat) -> JsonObject:
    found: JsonObject = (await chat.client.get("/v1/health")).json()
    return found


async def degraded(chat: Chat) -> None:
    """Wait until health says that the store refuses, and that the server is well all the same."""
    while (found := await health(chat)).get("store") != "degraded":
        assert found == {"status": "ok"}
    assert found["status"] == "ok"
    assert found["reason"]
    assert "\n" not in found["reason"]


async def works(chat: Chat) -> None:
    while await health(chat) != {"status": "ok"}:
        pass


async def refused(chat: Chat, text: str, key: str) -> None:
    """A writer must be told."""
    response = await chat.post("messages", text, key)
    assert 500 <= response.status_code < 600, (response.status_code, response.text)
    problem = response.json()
    assert problem["type"].startswith("urn:sandbox-agent:error:")
    assert problem["status"] == response.status_code
    assert problem["detail"]


async def fail_and_recover(
    server: ServerProcess,
    break_it: Callable[[], Any],
    restore: Callable[[], Any],
    *,
    readable: bool = True,
) -> None:
    """Two sessions, one amid a turn and with a queue, over a store that fails for a while."""
    async with client_of(server) as client:
        busy, idle = Chat(client, "busy"), Chat(client, "idle")
        await busy.create()
        await idle.create()
        taken = [("echo first", await busy.say("echo first", "k1"))]
        await busy.until("turn.ended")
        taken.append(("stream 30 20", await busy.say("stream 30 20", "k2")))
        taken.append(("echo queued", await busy.say("echo queued", "k3")))
        async with busy.stream(after=(await busy.info())["eventCount"]) as watch:
            await watch.until("item.delta")
            shown = await busy.events()
            await anyio.to_thread.run_sync(break_it)
            await refused(idle, "echo refused", "r1")
            await degraded(busy)
            await refused(busy, "echo refused", "r2")
            if readable:
                shown = await busy.events()  # reading goes on
            await anyio.to_thread.run_sync(restore)
            # it recovers by itself, and says so in the session
            error = (await busy.until("error", after=len(shown)))["data"]
            assert error["code"] == "store_degraded"
            await works(busy)
            taken.append(("echo refused", await busy.say("echo refused", "r2")))
            await busy.until("turn.ended", after=(await started(busy, taken[-1][1])))
        events = await busy.events()
        assert events[: len(shown)] == shown
        assert user_texts(events) == [text for text, _ in taken]
        ended = [event["data"]["turn_id"] for event in events if event["type"] == "turn.ended"]
        assert ended == [turn_id for _, turn_id in taken]
        assert {turn["state"] for turn in (await busy.info())["turns"]} == {"done"}
        deltas = Counter(event["type"] for event in events)["item.delta"]
        assert deltas >= 30
        # Whether it was accepted was unknown: with its key it is sent once.
        assert [event["type"] for event in await idle.turn("echo refused", "r1")][-1] == "turn.ended"
        assert user_texts(await idle.events()) == ["echo refused"]
    # ... and a kill right after it finds all of it
    server.kill()
    server.start()
    async with client_of(server) as client:
        assert await Chat(client, "busy").events() == events


async def started(chat: Chat, turn_id: str) -> int:
    """Return the sequence at which a turn began."""
    async with chat.stream() as stream:
        while True:
            event = (await stream.until("turn.started"))[-1]
            if event["data"]["turn_id"] == turn_id:
                return int(event["sequence"])


@pytest.mark.soak_with("EXCLUSIVE")
@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_store_that_another_process_locks_loses_nothing(tmp_path: Path, how: str) -> None:
    path = tmp_path / "store.db"
    with our_server(tmp_path, "--store", f"sqlite:{path}") as server, anyio.fail_after(SECONDS):
        releases: list[Callable[[], None]] = []
        with ExitStack() as stack:
            await fail_and_recover(
                server,
                lambda: releases.append(stack.enter_context(locked(path, how))),
                lambda: releases[0](),
            )


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A disk of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("FULL DISK NOT TESTED: this user can't mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_full_disk_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    ballast = small_disk / "ballast"

    def fill() -> None:
        """Use up every byte that is left."""
        with ballast.open("wb", buffering=0) as file:
            for size in (65536, 4096, 512, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass

    with our_server(tmp_path, "--store", f"sqlite:{small_disk}/store.db") as server:
        with anyio.fail_after(SECONDS):
            await fail_and_recover(server, fill, ballast.unlink)


async def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    """Where no disk can be mounted: the kernel refuses what makes a file of the server longer."""

    def limit(size: int) -> Callable[[], None]:
        def set_it() -> None:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        return set_it

    with our_server(tmp_path, "--store", f"sqlite:{tmp_path}/store.db") as server:
        with anyio.fail_after(SECONDS):
            await fail_and_recover(server, limit(1), limit(resource.RLIM_INFINITY))


@pytest.mark.soak
async def test_a_server_that_finds_its_store_locked_says_so_and_the_next_start_has_all(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    with our_server(tmp_path, "--store", f"sqlite:{path}") as server, anyio.fail_after(SECONDS):
        async with client_of(server) as client:
            chat = Chat(client, "kept")
            await chat.create()
            running = await chat.say("stall")
            await chat.until("turn.started")
            queued = await chat.say("echo queued")
        with locked(path, "IMMEDIATE") as release:
            server.kill()
            with pytest.raises(RuntimeError, match="is locked by another program"):
                await anyio.to_thread.run_sync(server.start)
            assert "Traceback" not in server.log.read_text()
            release()
        server.start()
        async with client_of(server) as client:
            chat = Chat(client, "kept")
            while (turns := (await chat.info())["turns"])[-1]["state"] != "done":
                pass
            assert {turn["turnId"]: turn["state"] for turn in turns} == {
                running: "interrupted",
                queued: "done",
            }
            assert user_texts(await chat.events()) == ["stall", "echo queued"]
