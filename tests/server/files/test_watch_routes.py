"""``GET /v1/fs/watch``: a stream that says when it begins, what it missed and why it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import anyio.lowlevel
import httpx2
import pytest

from sandbox_agent.engine.sse import SseDecoder, SseEvent
from sandbox_agent.errors import StreamError
from sandbox_agent.server.files import watchers
from sandbox_agent.server.files.places import Places
from sandbox_agent.server.files.tree import FileTree
from sandbox_agent.server.files.watchers import Watcher, Watchers
from tests.client.checks import until
from tests.server.files.test_files import open_files, problem
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

Events = AsyncGenerator[SseEvent]


@asynccontextmanager
async def watched(
    client: httpx2.AsyncClient, folder: Path, *, last: str | None = None, **more: str
) -> AsyncGenerator[Events]:
    """Open a stream, and yield its events."""
    headers = {} if last is None else {"last-event-id": last}
    params = {"path": str(folder), **more}
    async with client.stream("GET", "/v1/fs/watch", params=params, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        async with aclosing(events_of(response)) as events:
            yield events


async def events_of(response: httpx2.Response) -> Events:
    decoder = SseDecoder()
    async with aclosing(response.aiter_raw()) as parts:
        async for part in parts:
            for event in decoder.feed(part):
                yield event


async def read(events: Events) -> tuple[str, Any]:
    """Return the type and the data of the next event."""
    event = await anext(events)
    return event.event, json.loads(event.data)


async def test_changes_follow_ready(client: httpx2.AsyncClient, home: Path) -> None:
    async with watched(client, home) as events:
        assert await read(events) == ("ready", {"path": str(home)})
        (home / "file").touch()
        assert await read(events) == ("changes", {"changes": [{"type": "created", "path": f"{home}/file"}]})
        await client.put("/v1/fs/file", params={"path": f"{home}/new"}, content=b"23")
        assert await read(events) == ("changes", {"changes": [{"type": "created", "path": f"{home}/new"}]})


async def test_streams_of_one_folder_share_a_watcher(
    server: tuple[ServerProcess, Path], client: httpx2.AsyncClient, home: Path
) -> None:
    def instances() -> int:
        return sum("inotify" in path for path in open_files(server[0].pid))

    async with watched(client, home) as first:
        await read(first)
        before = instances()
        async with watched(client, home / ".") as second, watched(client, home) as third:
            ready = [await read(second), await read(third)]
            assert ready == [("ready", {"path": str(home)})] * 2
            assert instances() == before
            (home / "file").touch()
            found = [await read(events) for events in (first, second, third)]
            assert found == [("changes", {"changes": [{"type": "created", "path": f"{home}/file"}]})] * 3


async def test_a_client_that_reconnects_receives_what_it_missed(
    client: httpx2.AsyncClient, home: Path
) -> None:
    async with watched(client, home) as events:
        ready = await anext(events)
    (home / "missed").touch()
    async with watched(client, home, last=ready.id) as events:
        assert (await read(events))[0] == "ready"
        kind, found = await read(events)
        assert (kind, found["changes"]) == ("changes", [{"type": "created", "path": f"{home}/missed"}])


async def test_a_client_that_may_have_missed_something_receives_a_gap(
    client: httpx2.AsyncClient, home: Path
) -> None:
    async with watched(client, home, last="0badc0de-7") as events:
        assert await read(events) == ("gap", {"type": "gap", "path": str(home)})
        assert (await read(events))[0] == "ready"


async def test_a_folder_that_is_deleted_ends_its_stream(client: httpx2.AsyncClient, home: Path) -> None:
    (home / "sub").mkdir()
    async with watched(client, home / "sub") as events:
        await read(events)
        (home / "sub").rmdir()
        assert await read(events) == (
            "end",
            {"detail": f"the folder was deleted or moved: {home}/sub", "gone": True},
        )
        assert [event async for event in events] == []
    missing = await client.get("/v1/fs/watch", params={"path": str(home / "sub")})
    assert problem(missing) == (404, "not_found")
    # A folder that is made again is another one.
    (home / "sub").mkdir()
    async with watched(client, home / "sub") as events:
        await read(events)
        (home / "sub/file").touch()
        assert (await read(events))[0] == "changes"


async def test_what_cannot_be_watched_is_a_problem(client: httpx2.AsyncClient, home: Path) -> None:
    (home / "file").touch()
    for path, expected in (("missing", (404, "not_found")), ("file", (400, "invalid_request"))):
        answer = await client.get("/v1/fs/watch", params={"path": str(home / path)})
        assert problem(answer) == expected
    for params in ({"path": str(home), "recursive": "yes"}, {"path": "../x"}):
        assert problem(await client.get("/v1/fs/watch", params=params)) == (400, "invalid_request")
    answer = await client.get("/v1/fs/watch", headers={"accept": "text/html"})
    assert problem(answer) == (406, "not_acceptable")


async def test_a_folder_outside_of_the_roots_is_not_watched(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    with our_server(tmp_path, "--fs-root", str(tmp_path / "in")) as server:
        async with httpx2.AsyncClient(base_url=server.url) as client:
            for path in ("out", "in/link", "in/../out"):
                answer = await client.get("/v1/fs/watch", params={"path": str(tmp_path / path)})
                assert problem(answer) == (403, "permission_denied")
            async with watched(client, Path()) as events:
                assert (await read(events))[1] == {"path": str(tmp_path / "in")}


async def test_a_ticket_opens_the_stream_of_its_folder(tmp_path: Path) -> None:
    with our_server(tmp_path, token="secret-token-0123456789") as server:
        target = f"/v1/fs/watch?path={quote(str(tmp_path))}"
        async with httpx2.AsyncClient(base_url=server.url) as client:
            answer = await client.post(
                "/v1/tickets",
                json={"scope": "events", "path": target},
                headers={"authorization": f"Bearer {server.token}"},
            )
            ticket = answer.json()["ticket"]
            async with (
                client.stream("GET", f"{target}&ticket={ticket}") as response,
                aclosing(events_of(response)) as events,
            ):
                assert (await read(events))[0] == "ready"
            assert (await client.get(target)).status_code == 401
            elsewhere = f"/v1/fs/watch?path=/&ticket={ticket}"
            assert (await client.get(elsewhere)).status_code == 401


async def test_a_server_that_ends_does_not_wait_for_its_streams(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with httpx2.AsyncClient(base_url=server.url) as client, watched(client, tmp_path) as events:
            await read(events)
            assert await anyio.to_thread.run_sync(server.stop) == 0
            assert [event async for event in events if event.event != "changes"] == []


async def test_a_viewer_that_is_too_slow_receives_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "LOG_BYTES", 1000)
    async with opened(tmp_path) as found:
        watcher = await found.get(str(tmp_path), recursive=True)
        cursor, _ = watcher.position(None)
        for number in range(20):
            (tmp_path / f"file{number}").touch()
            await changed(watcher)
        gap = await watcher.read(cursor, "", max_bytes=10_000)
        assert SseDecoder().feed(gap.data)[0].event == "gap"
        rest = SseDecoder().feed((await watcher.read(gap.cursor, "", max_bytes=10_000)).data)
        assert rest[-1].event == "changes"
        assert f"file{19}" in rest[-1].data.decode()


async def test_more_folders_than_allowed_are_refused_until_others_are_left(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    async with opened(tmp_path, most=2) as found:
        watcher = await found.get(str(tmp_path / "a"), recursive=True)
        await found.get(str(tmp_path / "b"), recursive=True)
        with pytest.raises(StreamError, match="2 folders are watched already"):
            await found.get(str(tmp_path / "c"), recursive=True)
        watcher.stop()
        while True:
            try:
                await found.get(str(tmp_path / "c"), recursive=True)
            except StreamError:
                await anyio.lowlevel.checkpoint()
            else:
                break


async def test_a_watcher_without_clients_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "KEEPALIVE_SECONDS", 0.01)
    monkeypatch.setattr(watchers, "LINGER_SECONDS", 0.01)
    async with opened(tmp_path) as found:
        used = await found.get(str(tmp_path), recursive=True)
        with used.usage.used("client", streams=1):
            (tmp_path / "other").mkdir()
            idle = await found.get(str(tmp_path / "other"), recursive=True)
            await until(lambda: idle.finished)
            assert not used.finished
        await until(lambda: used.finished)


@asynccontextmanager
async def opened(home: Path, *, most: int = 4) -> AsyncGenerator[Watchers]:
    """Watchers in this process."""
    found = Watchers(FileTree(Places([], home)), most=most)
    async with found.run():
        yield found


async def changed(watcher: Watcher) -> None:
    """Wait for the next event."""
    before = watcher.position(None)[0]
    await until(lambda: watcher.position(None)[0] > before)
