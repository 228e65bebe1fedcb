"""Files are listed, read, written, moved and deleted; a write is whole or not there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.client.checks import until
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


async def put(
    client: httpx2.AsyncClient, path: Path | str, content: bytes, **headers: str
) -> httpx2.Response:
    """Write a file."""
    return await client.put("/v1/fs/file", params={"path": str(path)}, content=content, headers=headers)


async def get(client: httpx2.AsyncClient, path: Path | str, **headers: str) -> httpx2.Response:
    """Read a file."""
    return await client.get("/v1/fs/file", params={"path": str(path)}, headers=headers)


async def move(client: httpx2.AsyncClient, source: Path, target: Path, **more: Any) -> httpx2.Response:
    """Move something."""
    return await client.post("/v1/fs/move", json={"from": str(source), "to": str(target), **more})


def names(folder: Path) -> list[str]:
    """Return what is in a folder, and in those in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def problem(response: httpx2.Response) -> tuple[int, str]:
    """Return the status and the name of the problem."""
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["type"].rpartition(":")[2]


async def test_a_file_is_written_read_and_described(client: httpx2.AsyncClient, home: Path) -> None:
    path = home / "a" / "b.txt"
    written = await put(client, path, b"hello")
    assert written.json() == {"path": str(path), "bytesWritten": 5}
    read = await get(client, path)
    assert (read.content, read.headers["content-type"]) == (b"hello", "application/octet-stream")
    assert read.headers["etag"] == written.headers["etag"]
    stat = (await client.get("/v1/fs/stat", params={"path": str(path)})).json()
    assert {**stat, "modified": stat["modified"][-1]} == {
        "path": str(path),
        "entryType": "file",
        "size": 5,
        "modified": "Z",
    }
    assert names(path.parent) == ["b.txt"]


async def test_relative_paths_are_below_the_home(
    client: httpx2.AsyncClient, server: tuple[ServerProcess, Path]
) -> None:
    written = await put(client, "notes/today.txt", b"x")
    assert written.json()["path"] == str(server[1] / "notes/today.txt")
    for path in ("../x", "a/../../x", "a/../b"):
        assert problem(await get(client, path)) == (400, "invalid_request")
    listed = (await client.get("/v1/fs/entries")).json()
    assert "notes" in [entry["name"] for entry in listed]


async def test_a_folder_is_listed_by_name_and_links_are_not_followed(
    client: httpx2.AsyncClient, home: Path
) -> None:
    (home / "folder").mkdir()
    (home / "file").write_bytes(b"123")
    (home / "link").symlink_to("/etc")
    entries = (await client.get("/v1/fs/entries", params={"path": str(home)})).json()
    assert [(one["name"], one["entryType"]) for one in entries] == [
        ("file", "file"),
        ("folder", "directory"),
        ("link", "file"),
    ]
    assert entries[0]["path"] == str(home / "file")
    assert entries[0]["size"] == 3


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/fs/file?path={home}/nope", (404, "not_found")),
        ("GET", "/v1/fs/file?path={home}/folder", (400, "invalid_request")),
        ("GET", "/v1/fs/file?path={home}/pipe", (400, "invalid_request")),
        ("GET", "/v1/fs/file?path={home}/file/below", (400, "invalid_request")),
        ("GET", "/v1/fs/file?path={home}/loop", (400, "invalid_request")),
        ("GET", "/v1/fs/file?path={home}/%00", (400, "invalid_request")),
        ("GET", "/v1/fs/file?path={home}/" + "x" * 300, (400, "invalid_request")),
        ("GET", "/v1/fs/file", (400, "invalid_request")),
        ("GET", "/v1/fs/file?path={home}/folder&archive=zip", (400, "invalid_request")),
        ("GET", "/v1/fs/stat?path={home}/nope", (404, "not_found")),
        ("GET", "/v1/fs/entries?path={home}/file", (400, "invalid_request")),
        ("GET", "/v1/fs/entries?path={home}/nope", (404, "not_found")),
        ("PUT", "/v1/fs/file?path={home}/folder", (400, "invalid_request")),
        ("PUT", "/v1/fs/file?path={home}/file/below", (400, "invalid_request")),
        ("POST", "/v1/fs/mkdir?path={home}/file", (409, "conflict")),
        ("DELETE", "/v1/fs/entry?path={home}/nope", (404, "not_found")),
        ("DELETE", "/v1/fs/entry?path={home}/folder", (409, "conflict")),
        ("DELETE", "/v1/fs/entry?path={home}/folder&recursive=yes", (400, "invalid_request")),
    ],
)
async def test_what_cannot_be_done_is_a_problem_and_changes_nothing(
    client: httpx2.AsyncClient, home: Path, method: str, path: str, expected: tuple[int, str]
) -> None:
    (home / "folder").mkdir()
    (home / "folder" / "content").touch()
    (home / "file").touch()
    (home / "loop").symlink_to("loop")
    os.mkfifo(home / "pipe")
    before = names(home)
    assert problem(await client.request(method, path.format(home=home))) == expected
    assert names(home) == before


async def test_a_write_that_is_cut_off_leaves_what_was_there(
    server: tuple[ServerProcess, Path], client: httpx2.AsyncClient, home: Path
) -> None:
    path = home / "file"
    await put(client, path, b"before")
    with socket.create_connection(("127.0.0.1", server[0].port)) as connection:
        head = f"PUT /v1/fs/file?path={path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {4 * MIB}\r\n\r\n"
        connection.sendall(head.encode() + bytes(2 * MIB))
        await until(lambda: len(names(home)) == 2)  # what has arrived is under another name
        assert path.read_bytes() == b"before"
        listed = (await client.get("/v1/fs/entries", params={"path": str(home)})).json()
        assert [entry["name"] for entry in listed] == ["file"]
    await until(lambda: names(home) == ["file"])
    assert path.read_bytes() == b"before"


async def test_a_server_that_is_killed_in_a_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "files/file"
    path.parent.mkdir()
    path.write_bytes(b"before")
    with our_server(tmp_path) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"PUT /v1/fs/file?path={path} HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall(f"{head}Content-Length: {4 * MIB}\r\n\r\n".encode() + bytes(2 * MIB))
            await until(lambda: len(names(path.parent)) == 2)
            server.kill()
        assert path.read_bytes() == b"before"
        server.start()
        async with httpx2.AsyncClient(base_url=server.url) as client:
            listed = (await client.get("/v1/fs/entries", params={"path": str(path.parent)})).json()
            assert [entry["name"] for entry in listed] == ["file"]
            assert (await put(client, path, b"after")).status_code == 200
        assert path.read_bytes() == b"after"


async def test_a_file_that_is_replaced_keeps_its_permissions_and_a_link_stays_one(
    client: httpx2.AsyncClient, home: Path
) -> None:
    (home / "program").write_bytes(b"old")
    (home / "program").chmod(0o750)
    (home / "link").symlink_to("program")
    assert (await put(client, home / "link", b"new")).status_code == 200
    assert (home / "link").is_symlink()
    assert (home / "program").read_bytes() == b"new"
    assert (home / "program").stat().st_mode & 0o777 == 0o750


async def test_a_version_is_required(client: httpx2.AsyncClient, home: Path) -> None:
    path = home / "file"
    first = (await put(client, path, b"one", **{"if-none-match": "*"})).headers["etag"]
    assert (await put(client, path, b"two", **{"if-none-match": "*"})).status_code == 412
    second = (await put(client, path, b"two", **{"if-match": first})).headers["etag"]
    assert second != first
    assert (await put(client, path, b"three", **{"if-match": first})).status_code == 412
    assert (await put(client, path, b"three", **{"if-match": "*"})).status_code == 200
    assert (await put(client, home / "new", b"x", **{"if-match": "*"})).status_code == 412
    assert path.read_bytes() == b"three"
    assert names(home) == ["file"]
    known = (await get(client, path)).headers["etag"]
    unchanged = await get(client, path, **{"if-none-match": known})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", known)


async def test_of_many_writers_of_one_version_one_succeeds(client: httpx2.AsyncClient, home: Path) -> None:
    version = (await put(client, home / "file", b"start")).headers["etag"]
    answers = await asyncio.gather(
        *(put(client, home / "file", b"%d" % number, **{"if-match": version}) for number in range(20))
    )
    won = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert len(won) == 1
    assert (home / "file").read_bytes() == b"%d" % won[0]


@pytest.mark.parametrize(
    ("wanted", "status", "content", "described"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
    ],
)
async def test_a_range_is_read(
    client: httpx2.AsyncClient,
    home: Path,
    wanted: str,
    status: int,
    content: bytes | None,
    described: str | None,
) -> None:
    await put(client, home / "file", b"0123456789")
    answer = await get(client, home / "file", range=wanted)
    assert (answer.status_code, answer.headers.get("content-range")) == (status, described)
    if content is not None:
        assert answer.content == content


async def test_a_range_of_another_version_is_the_whole_file(client: httpx2.AsyncClient, home: Path) -> None:
    version = (await put(client, home / "file", b"0123456789")).headers["etag"]
    part = await get(client, home / "file", **{"range": "bytes=5-", "if-range": version})
    assert (part.status_code, part.content) == (206, b"56789")
    await put(client, home / "file", b"abcdefghij")
    whole = await get(client, home / "file", **{"range": "bytes=5-", "if-range": version})
    assert (whole.status_code, whole.content) == (200, b"abcdefghij")


async def test_a_head_request_describes_a_file(client: httpx2.AsyncClient, home: Path) -> None:
    await put(client, home / "file", b"0123456789")
    answer = await client.head("/v1/fs/file", params={"path": str(home / "file")})
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "10", b"")


async def test_large_files_are_streamed_both_ways(
    server: tuple[ServerProcess, Path], client: httpx2.AsyncClient, home: Path
) -> None:
    size = 200 * MIB
    block = os.urandom(MIB)
    before = resident(server[0].pid)

    async def content() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield block

    path = {"path": str(home / "large")}
    assert (await client.put("/v1/fs/file", params=path, content=content())).json()["bytesWritten"] == size
    received = 0
    async with client.stream("GET", "/v1/fs/file", params=path) as answer:
        async for part in answer.aiter_raw():
            received += len(part)
    assert received == size
    assert resident(server[0].pid) - before < 32 * MIB
    (home / "large").unlink()


async def test_a_download_that_the_client_gives_up_closes_the_file(
    server: tuple[ServerProcess, Path], client: httpx2.AsyncClient, home: Path
) -> None:
    with (home / "large").open("wb") as file:
        file.truncate(200 * MIB)
    async with client.stream("GET", "/v1/fs/file", params={"path": str(home / "large")}) as answer:
        await anext(answer.aiter_raw())
        assert str(home / "large") in open_files(server[0].pid)
    await until(lambda: str(home / "large") not in open_files(server[0].pid))


def open_files(pid: int) -> list[str]:
    """Return the paths of what a process has open."""
    found: list[str] = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - as in tests.support.servers
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))  # noqa: PTH115
    return found


def resident(pid: int) -> int:
    """Return the memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_files_and_folders_are_moved(client: httpx2.AsyncClient, home: Path) -> None:
    await put(client, home / "from" / "file", b"x")
    moved = await move(client, home / "from", home / "new" / "place")
    assert moved.json() == {"from": str(home / "from"), "to": str(home / "new" / "place")}
    assert (home / "new/place/file").read_bytes() == b"x"
    await put(client, home / "other", b"y")
    assert problem(await move(client, home / "other", home / "new/place")) == (409, "conflict")
    assert problem(await move(client, home / "nope", home / "new/nope")) == (404, "not_found")
    assert (await move(client, home / "other", home / "new/place", overwrite=True)).status_code == 200
    assert (home / "new/place").read_bytes() == b"y"
    (home / "folder").mkdir()
    assert (await move(client, home / "folder", home / "new/place", overwrite=True)).status_code == 200
    assert names(home) == ["new", "new/place"]
    assert problem(await move(client, home / "new", home / "new/place/below")) == (400, "invalid_request")
    assert (home / "new/place").is_dir()


async def test_a_link_is_moved_and_deleted_and_what_it_leads_to_stays(
    client: httpx2.AsyncClient, home: Path
) -> None:
    (home / "kept").mkdir()
    (home / "kept" / "file").touch()
    (home / "link").symlink_to("kept")
    assert (await move(client, home / "link", home / "moved")).status_code == 200
    assert (home / "moved").is_symlink()
    deleted = await client.delete("/v1/fs/entry", params={"path": str(home / "moved"), "recursive": "true"})
    assert deleted.json() == {"path": str(home / "moved")}
    assert names(home) == ["kept", "kept/file"]


async def test_folders_are_made_and_deleted(client: httpx2.AsyncClient, home: Path) -> None:
    path = {"path": str(home / "a/b/c")}
    for _ in range(2):
        assert (await client.post("/v1/fs/mkdir", params=path)).json() == path
    await put(client, home / "a/b/c/file", b"x")
    deleted = await client.delete("/v1/fs/entry", params={"path": str(home / "a"), "recursive": "true"})
    assert deleted.status_code == 200
    assert names(home) == []
