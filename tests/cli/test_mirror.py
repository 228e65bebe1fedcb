"""``sandbox-agent mirror``: into real databases, over kills of the server and of itself."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SECONDS, Shell
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.servers import ServerProcess, our_server

# Sequence and id of each event.
Events = list[tuple[int, str]]
Reader = Callable[[], Events]
QUERY = "SELECT sequence, event_id FROM agent_events ORDER BY sequence"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the test's own, which keeps its sessions over a restart."""
    with our_server(tmp_path / "server-data") as server:
        yield server


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:  # pyright: ignore[reportUnusedFunction]
    (tmp_path / "server-data").mkdir()


def api(shell: Shell, server: ServerProcess, *words: str) -> list[dict[str, Any]]:
    done = shell.run("api", "sessions", *words, "--endpoint", server.url)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def truth(shell: Shell, server: ServerProcess) -> Events:
    """Return what the server has."""
    events: Events = []
    while True:
        [page] = api(shell, server, "events", "s", "--offset", str(len(events)), "--limit", "1000")
        events += [(event["sequence"], event["event_id"]) for event in page["events"]]
        if not page["hasMore"]:
            return events


def wait_beyond(read: Callable[[], Events], count: int, mirror: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + SECONDS
    while len(read()) <= count:
        assert time.monotonic() < deadline
        assert mirror.poll() is None, mirror.communicate()
        time.sleep(0.01)
    return len(read())


@pytest.fixture(params=["redis", "postgres", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Reader]:
    """A sink's URL, and what reads it."""
    if request.param == "redis":
        valkey: RedisServer = request.getfixturevalue("redis_server")
        url = valkey.fresh_url()
        database = int(url.rpartition("/")[2])

        def from_list() -> Events:
            items = [
                json.loads(item) for item in valkey.call("LRANGE", "session:s", 0, -1, database=database)
            ]
            return [(item["sequence"], item["event_id"]) for item in items]

        return url, from_list
    if request.param == "postgres":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        dsn: str = request.getfixturevalue("postgres_dsn")

        def from_table() -> Events:
            there = postgres.execute("SELECT to_regclass('agent_events') IS NOT NULL", dsn=dsn)
            if not there[0][0]:
                return []
            return [(row[0], row[1]) for row in postgres.execute(QUERY, dsn=dsn)]

        return dsn, from_table
    path = tmp_path / "mirror.db"

    def from_file() -> Events:
        if not path.exists():
            return []
        database = sqlite3.connect(path, timeout=10)
        try:
            return database.execute(
                "SELECT sequence, event_id FROM agent_events ORDER BY sequence"
            ).fetchall()
        except sqlite3.OperationalError:
            return []
        finally:
            database.close()

    return f"sqlite:{path}", from_file


@pytest.mark.soak_with("postgres", "redis", "sqlite")
def test_a_mirror_has_each_event_once_when_server_and_mirror_are_killed(
    shell: Shell, server: ServerProcess, place: tuple[str, Reader]
) -> None:
    url, read = place
    words = ("mirror", "s", "--into", url, "--endpoint", server.url)
    api(shell, server, "create", "s", "--agent", "mock")
    mirror = shell.start(*words)
    reached = 0
    for round_ in range(2):
        api(shell, server, "send-message", "s", "-m", "burst 10000 200")
        reached = wait_beyond(read, reached + 20, mirror)
        if round_:
            server.kill()
            server.start()
            api(shell, server, "send-message", "s", "-m", "echo again")
            wait_beyond(read, reached, mirror)
        mirror.kill()
        mirror.communicate(timeout=SECONDS)
        # What the next one stores shows that it has met the server: it gives up where it never did.
        reached = len(read())
        mirror = shell.start(*words)
    api(shell, server, "terminate", "s")
    _, errors = mirror.communicate(timeout=SECONDS)
    assert mirror.returncode == 0, errors
    events = truth(shell, server)
    assert read() == events
    assert [sequence for sequence, _ in events] == list(range(1, len(events) + 1))
    assert f"mirror of s: {len(events)} events, " in errors.decode()


@pytest.mark.soak_with("postgres", "redis")
def test_a_mirror_that_is_run_once_ends_where_the_history_does(
    shell: Shell, server: ServerProcess, place: tuple[str, Reader]
) -> None:
    url, read = place
    api(shell, server, "create", "s", "--agent", "mock")
    for message in ("echo one", "echo two"):
        api(shell, server, "send-message-stream", "s", "-m", message)
        before = len(read())
        done = shell.run("mirror", "s", "--once", "--endpoint", server.url, env={"SANDBOX_AGENT_MIRROR": url})
        assert done.returncode == 0, done.stderr
        assert read() == truth(shell, server)
        assert f"{len(read())} events, {len(read()) - before} of them new" in done.stderr


@pytest.mark.soak_with("postgres", "redis")
def test_a_mirror_ends_in_good_order_when_it_is_interrupted(
    shell: Shell, server: ServerProcess, place: tuple[str, Reader]
) -> None:
    url, read = place
    api(shell, server, "create", "s", "--agent", "mock")
    api(shell, server, "send-message-stream", "s", "-m", "echo one")
    mirror = shell.start("mirror", "s", "--into", url, "--endpoint", server.url)
    wait_beyond(read, 0, mirror)
    mirror.send_signal(signal.SIGINT)
    _, errors = mirror.communicate(timeout=SECONDS)
    assert mirror.returncode == 130
    assert b"Traceback" not in errors
    assert shell.run("mirror", "s", "--once", "--into", url, "--endpoint", server.url).returncode == 0
    assert read() == truth(shell, server)


@pytest.mark.parametrize(
    ("into", "code", "said"),
    [
        ("mysql://:secret@host/db", 64, "no store is known for 'mysql:'"),
        ("memory", 64, "can't mirror into 'memory'"),
        ("redis://:secret@127.0.0.1:1/0", 74, "can't be reached"),
        ("postgres://u:secret@127.0.0.1:1/db", 74, "127.0.0.1:1"),
    ],
)
def test_a_mirror_says_in_one_line_what_is_wrong(
    shell: Shell, server: ServerProcess, into: str, code: int, said: str
) -> None:
    api(shell, server, "create", "s", "--agent", "mock")
    done = shell.run("mirror", "s", "--into", into, "--endpoint", server.url)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_session_that_is_unknown_is_said_to_be(shell: Shell, server: ServerProcess, tmp_path: Path) -> None:
    into = f"sqlite:{tmp_path / 'mirror.db'}"
    done = shell.run("mirror", "nobody", "--into", into, "--endpoint", server.url)
    assert done.returncode == 66
    assert "nobody" in done.stderr
