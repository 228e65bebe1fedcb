"""A store whose file is moved, deleted, replaced or damaged under a server: reported, and nothing is lost."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest

from tests.chaos.chats import Chat, user_texts
from tests.chaos.test_store import degraded, health, works
from tests.server.talk import client_of
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

SECONDS = 90


@pytest.fixture
def server(tmp_path: Path) -> Generator[ServerProcess]:
    with our_server(tmp_path, "--store", f"sqlite:{tmp_path / 'server.db'}") as running:
        yield running


@asynccontextmanager
async def chatting(server: ServerProcess) -> AsyncGenerator[Chat]:
    """A session that has had a turn."""
    async with client_of(server) as client:
        with anyio.fail_after(SECONDS):
            chat = Chat(client, "chat")
            await chat.create()
            await chat.turn("echo before")
            yield chat


async def refused(chat: Chat, folder: Path) -> None:
    """Writers are refused, without the store's path."""
    response = await chat.post("messages", "echo refused", "refused")
    assert response.status_code == 503, response.text
    assert str(folder) not in response.text
    created = await chat.client.post("/v1/sessions/other", json={"agent": "mock"})
    assert created.status_code == 503, created.text
    assert str(folder) not in created.text


async def reason(chat: Chat, folder: Path) -> str:
    await degraded(chat)
    found = str((await health(chat))["reason"])
    assert str(folder) not in found
    return found


@pytest.mark.soak
async def test_a_file_that_was_moved_away_and_comes_back_is_used_again(
    server: ServerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "server.db"
    async with chatting(server) as chat:
        before = await chat.events()
        away = path.with_name("away.db")
        path.rename(away)
        await refused(chat, tmp_path)
        assert "was moved or deleted while in use" in await reason(chat, tmp_path)
        assert (await chat.client.get("/v1/sessions")).status_code == 503
        assert not path.exists()  # no empty store in its place
        away.rename(path)
        await works(chat)
        await chat.turn("echo after")
        events = await chat.events()
        assert events[: len(before)] == before
        assert user_texts(events) == ["echo before", "echo after"]
        log = server.log.read_text()
        logged = [log.count(start) for start in ("the store failed: ", "the store is degraded: ")]
        assert max(logged) == 1, log
        server.kill()
        server.start()
    async with client_of(server) as client:
        assert await Chat(client, "chat").events() == events


@pytest.mark.soak
async def test_a_file_that_was_replaced_by_another_one_is_not_used(
    server: ServerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "server.db"
    async with chatting(server) as chat:
        first = path.with_name("first.db")
        path.rename(first)
        shutil.copy(first, path)  # what a copy of some time ago would be
        copied = path.read_bytes()
        await refused(chat, tmp_path)
        assert "was replaced by another file" in await reason(chat, tmp_path)
        assert path.read_bytes() == copied
        first.replace(path)
        await works(chat)
        await chat.turn("echo after")
        assert user_texts(await chat.events()) == ["echo before", "echo after"]


@pytest.mark.soak
async def test_a_deleted_file_is_reported_once_and_a_restart_begins_with_an_empty_one(
    server: ServerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "server.db"
    async with chatting(server) as chat:
        path.unlink()
        assert "was moved or deleted while in use" in await reason(chat, tmp_path)
        await refused(chat, tmp_path)
        log = server.log.read_text()
        assert log.count("the store is degraded: ") == 1
        assert "no such table" not in log
        server.stop()
        server.start()
    async with client_of(server) as client:
        assert (await client.get("/v1/sessions")).json()["sessions"] == []


@pytest.mark.soak
async def test_damage_that_a_reader_meets_is_reported_and_nothing_is_stored_until_a_restart(
    server: ServerProcess, tmp_path: Path
) -> None:
    path, word = tmp_path / "server.db", "xylophagous"
    async with chatting(server) as chat:
        await chat.turn(f"echo {word}")
    server.stop()
    whole = path.read_bytes()
    path.write_bytes(_damaged(whole, path, word))
    server.start()
    async with client_of(server) as client:
        with anyio.fail_after(SECONDS):
            chat = Chat(client, "chat")
            answer = await client.get(f"{chat.path}/events")
            assert answer.status_code == 503
            assert str(tmp_path) not in answer.text
            assert "is damaged, nothing is stored" in await reason(chat, tmp_path)
            await refused(chat, tmp_path)
            with anyio.fail_after(30):
                while "the store is degraded: " not in server.log.read_text():
                    await health(chat)
            assert server.log.read_text().count("the store is degraded: ") == 1
    server.stop()
    path.write_bytes(whole)
    server.start()
    async with client_of(server) as client:
        chat = Chat(client, "chat")
        assert await health(chat) == {"status": "ok"}
        await chat.turn("echo after")
        assert user_texts(await chat.events()) == ["echo before", f"echo {word}", "echo after"]


def _damaged(content: bytes, path: Path, word: str) -> bytes:
    """Return a database with invalid pages of events, where a word is; its other pages are as they were."""
    with closing(sqlite3.connect(path)) as database:
        size: int = database.execute("PRAGMA page_size").fetchone()[0]
    pages = [content[start : start + size] for start in range(0, len(content), size)]
    found = [page for page in pages if word.encode() in page]
    assert found
    return b"".join(b"\xff" * 8 + page[8:] if page in found else page for page in pages)
