"""The path of the store is for the log: no response has it, however the store fails."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import anyio
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.errors import explain_sqlite
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.server.errors import without_path
from sandbox_agent.server.http.problems import error_response
from tests.server.talk import client_of
from tests.support.servers import our_server

pytestmark = pytest.mark.anyio

FOLDERS = ["plain", "it's", "two words", "it's (mine), 'quoted'x"]


async def failures(folder: Path) -> list[PersistError]:
    """Return what a thread raises for each way in which its file can fail."""
    path = folder / "server.db"
    found: list[PersistError] = []

    async def attempt(thread: SQLiteThread, statement: str = "CREATE TABLE t (x)") -> None:
        try:
            await thread.run(lambda connection: connection.execute(statement))
        except PersistError as error:
            found.append(error)

    thread = SQLiteThread(path, same_file=True)
    await attempt(thread, "CREATE TABLE kept (x)")
    await attempt(thread, "no statement")
    moved = folder / "moved.db"
    path.rename(moved)
    await attempt(thread)
    path.write_text("another file")
    await attempt(thread)
    await thread.close()
    await attempt(thread)  # closed
    for other in (folder, path / "below" / "x.db"):  # a folder; a file as a folder; a file that is none
        thread = SQLiteThread(other)
        await attempt(thread)
        await thread.close()
    thread = SQLiteThread(path)
    await attempt(thread)
    path.unlink()
    moved.rename(path)
    await attempt(thread)
    path.unlink()
    await attempt(thread)
    await thread.close()
    for code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR, 1):
        error = sqlite3.OperationalError("words")
        error.sqlite_errorcode = code
        found.append(explain_sqlite(error, str(path)))
    return found


@pytest.mark.parametrize("name", FOLDERS)
async def test_no_error_of_the_store_has_its_path_in_a_response(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    await anyio.Path(folder).mkdir()
    errors = await failures(folder)
    assert len(errors) >= 11
    for error in errors:
        assert str(tmp_path) in str(error)  # the log has it
        body = bytes(error_response("GET /", error).body).decode()
        for part in (str(tmp_path), "server.db", name):
            assert part not in body, body


async def test_what_is_not_a_path_stays() -> None:
    text = "the store is damaged: repair it with 'sqlite3 FILE .recover' (malformed)"
    assert without_path(text) == text
    assert without_path("the store '/a/b.db' is locked, try again") == "the store is locked, try again"


@pytest.mark.soak_with("plain", "two words", "it's")
@pytest.mark.parametrize("name", FOLDERS)
async def test_no_response_of_a_server_whose_store_is_away_has_its_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    await anyio.Path(folder).mkdir()
    path = anyio.Path(folder / "server.db")
    with our_server(tmp_path, "--store", f"sqlite:{path}") as server:
        async with client_of(server) as client:
            assert (await client.post("/v1/sessions/one", json={"agent": "mock"})).status_code == 200
            await path.rename(path.with_name("moved.db"))
            answers = [
                await client.request(method, target, json=body)
                for method, target, body in (
                    ("GET", "/v1/sessions", None),
                    ("GET", "/v1/sessions/one", None),
                    ("GET", "/v1/sessions/one/events", None),
                    ("GET", "/v1/sessions/other/events/sse", None),
                    ("GET", "/v1/sessions/one/envelopes", None),
                    ("GET", "/v1/sessions/one/export?format=jsonl", None),
                    ("GET", "/v1/search?q=x", None),
                    ("GET", "/v1/permissions", None),
                    ("POST", "/v1/sessions/one/messages", {"message": "x"}),
                    ("POST", "/v1/sessions/one/messages/stream", {"message": "x"}),
                    ("POST", "/v1/sessions/two", {"agent": "mock"}),
                    ("POST", "/v1/sessions/one/terminate", None),
                    ("GET", "/v1/health", None),
                )
            ]
            assert sum(answer.status_code == 503 for answer in answers) >= 8
            for answer in answers:
                assert str(tmp_path) not in answer.text
                assert name not in answer.text
