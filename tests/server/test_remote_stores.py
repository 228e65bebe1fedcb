"""Sessions in PostgreSQL or Redis: whole over kills, unseen by other servers, without passwords."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.server.store import check_store, default_namespace, open_store
from tests.chaos.chats import Chat, JsonObject, user_texts
from tests.persist.store.making import filled
from tests.server.talk import client_of
from tests.support.databases import Database, database
from tests.support.effort import SOAK, repeats
from tests.support.servers import ServerProcess, our_server

__all__ = ["database"]

pytestmark = pytest.mark.anyio

SECONDS = 60 * max(1, SOAK)
KILLS = repeats(2, 5)


def server_of(folder: Path, database: Database, *options: str) -> ServerProcess:
    folder.mkdir(exist_ok=True)
    return our_server(folder, *options, env={"SANDBOX_AGENT_STORE": database.url})


@pytest.mark.loops
@pytest.mark.soak_with("redis")
async def test_sessions_are_whole_however_often_the_server_is_killed(
    tmp_path: Path, database: Database
) -> None:
    said: list[str] = []
    shown: list[JsonObject] = []
    with server_of(tmp_path / "one", database) as server, anyio.fail_after(SECONDS):
        for number in range(KILLS):
            async with client_of(server) as client:
                chat = Chat(client, "kept")
                if not number:
                    await chat.create()
                # What viewers have seen is there, and nothing of it has changed.
                assert (await chat.events())[: len(shown)] == shown
                for text in (f"echo {number}", "tool", "stream 200 5"):
                    await chat.say(text, f"{text} {number}")
                    said.append(text)
                async with chat.stream(after=len(shown)) as stream:
                    shown += await stream.until("turn.started")
                    for _ in range(3):
                        shown += await stream.until("item.delta")
                    if number % 2:
                        shown += await stream.until("turn.ended")
                await anyio.to_thread.run_sync(server.kill)
            await anyio.to_thread.run_sync(server.start)
        async with client_of(server) as client:
            chat = Chat(client, "kept")
            while {turn["state"] for turn in (await chat.info())["turns"]} - {"done", "interrupted"}:
                pass
            events = await chat.events()
            assert events[: len(shown)] == shown
            assert user_texts(events) == said
            started = [event["data"]["turn_id"] for event in events if event["type"] == "turn.started"]
            ended = [event["data"]["turn_id"] for event in events if event["type"] == "turn.ended"]
            assert started == ended
            assert len(set(started)) == len(said)
            found = (await client.get("/v1/search", params={"q": "echo"})).json()
            assert found["hits"]


@pytest.mark.soak_with("redis")
async def test_servers_of_other_namespaces_see_nothing_of_each_other(
    tmp_path: Path, database: Database
) -> None:
    with (
        server_of(tmp_path / "one", database) as one,
        server_of(tmp_path / "two", database, "--store-namespace", "two") as two,
        anyio.fail_after(SECONDS),
    ):
        for server, word in ((one, "alpha"), (two, "beta")):
            async with client_of(server) as client:
                chat = Chat(client, "same")
                await chat.create()
                await chat.turn(f"echo {word}")
        for server, word, other in ((one, "alpha", "beta"), (two, "beta", "alpha")):
            async with client_of(server) as client:
                assert user_texts(await Chat(client, "same").events()) == [f"echo {word}"]
                assert [
                    row["sessionId"] for row in (await client.get("/v1/sessions")).json()["sessions"]
                ] == ["same"]
                hits = (await client.get("/v1/search", params={"q": word})).json()["hits"]
                assert hits
                assert (await client.get("/v1/search", params={"q": other})).json()["hits"] == []
        async with client_of(one) as client:
            assert (await client.delete("/v1/sessions/same")).is_success
        async with client_of(two) as client:
            assert user_texts(await Chat(client, "same").events()) == ["echo beta"]


@pytest.mark.soak_with("redis")
async def test_second_server_of_a_namespace_is_refused_until_the_first_has_ended(
    tmp_path: Path, database: Database
) -> None:
    names = ("--store-namespace", "shared name")
    with server_of(tmp_path / "one", database, *names) as one, anyio.fail_after(SECONDS):
        async with client_of(one) as client:
            await Chat(client, "kept").create()
        two = server_of(tmp_path / "two", database, *names)
        with pytest.raises(RuntimeError, match=r"'shared name'.*another"):
            await anyio.to_thread.run_sync(two.start)
        assert "Traceback" not in two.log.read_text()
        async with client_of(one) as client:
            await Chat(client, "kept").turn("echo still")
        await anyio.to_thread.run_sync(one.kill)
        with two:
            async with client_of(two) as client:
                assert user_texts(await Chat(client, "kept").events()) == ["echo still"]


@pytest.mark.soak_with("redis")
def test_server_that_finds_no_database_says_so_without_the_password(
    tmp_path: Path, database: Database
) -> None:
    database.kill()
    server = server_of(tmp_path / "one", database, "--log-level", "debug")
    with pytest.raises(RuntimeError, match="can't be reached"):
        server.start()
    log = server.log.read_text()
    assert "Traceback" not in log
    assert database.password not in log
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--port", "0", "--store", database.url],
        capture_output=True,
        text=True,
        timeout=60,
        env={"XDG_DATA_HOME": str(tmp_path), "PATH": ""},
    )
    assert done.returncode == 74, done.stderr
    assert database.password not in done.stderr + done.stdout
    # The server's own name for itself is kept all the same.
    assert re.fullmatch(r"server-[0-9a-f]{16}\n", (tmp_path / "sandbox-agent/store-namespace").read_text())


async def test_password_of_the_database_is_nowhere_to_be_seen(tmp_path: Path, database: Database) -> None:
    with server_of(tmp_path / "one", database, "--log-level", "debug") as server, anyio.fail_after(SECONDS):
        async with client_of(server) as client:
            chat = Chat(client, "kept")
            await chat.create()
            await chat.turn("env SANDBOX_AGENT_STORE")
            await anyio.to_thread.run_sync(database.kill)
            refused = await chat.post("messages", "echo refused")
            assert refused.status_code >= 500
            while (health := await client.get("/v1/health")).json().get("store") != "degraded":
                pass
            seen = refused.text + health.text + server.log.read_text()
            if sys.platform == "linux":
                seen += await anyio.Path(f"/proc/{server.pid}/cmdline").read_text()
            assert database.password not in seen
            await anyio.to_thread.run_sync(database.start)
            while (await client.get("/v1/health")).json() != {"status": "ok"}:
                pass
            assert database.password not in server.log.read_text()


def test_help_shows_the_variables_and_not_what_is_in_them() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--help"],
        capture_output=True,
        text=True,
        env={"SANDBOX_AGENT_STORE": "postgres://me:geheim@host/x", "PATH": ""},
        timeout=60,
    )
    assert "geheim" not in shown.stdout
    assert "SANDBOX_AGENT_STORE_NAMESPACE" in shown.stdout


@pytest.mark.parametrize(
    "store", ["mysql://me:geheim@host/x", "postgres:me:geheim@host", "encrypted+postgres://me:geheim@host/x"]
)
def test_store_that_is_none_is_refused_without_its_password(store: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        check_store(store)
    assert "geheim" not in str(refusal.value)


async def test_store_of_one_server_has_no_namespaces(tmp_path: Path) -> None:
    for store in ("memory", f"sqlite:{tmp_path}/store.db"):
        with pytest.raises(InvalidRequestError, match="no namespaces"):
            async with open_store(store, namespace="x"):
                pass


def test_namespace_of_a_server_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    name = default_namespace()
    assert default_namespace() == name
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other"))
    assert default_namespace() != name
    (tmp_path / "sandbox-agent/store-namespace").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(PersistError, match="--store-namespace"):
        default_namespace()


async def test_store_that_is_opened_in_the_process_goes_on_where_it_was(database: Database) -> None:
    for number in range(2):
        async with open_store(database.url, namespace="n") as store:
            assert (await store.sessions.session("session-1") is not None) == bool(number)
            await store.sessions.commit(filled(1, 3))
