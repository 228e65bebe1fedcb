"""``/v1/config``: entries are kept in files of their folder; nothing of them is lost or half-written."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox_agent.server.configuration import files
from sandbox_agent.server.configuration.files import MCP, ConfigFiles
from sandbox_agent.server.files.places import Places
from sandbox_agent.server.files.tree import FileTree
from sandbox_agent.wire.configuration import McpLocalServer
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import ServerProcess, our_server, published_server

pytestmark = pytest.mark.anyio

LOCAL = {"type": "local", "command": "server", "args": ["-v"], "env": {"KEY": "secret"}, "timeoutMs": 5}
REMOTE = {
    "type": "remote",
    "url": "http://127.0.0.1/mcp",
    "transport": "sse",
    "headers": {"x": "y"},
    "envHeaders": {"a": "B"},
    "bearerTokenEnvVar": "TOKEN",
    "oauth": False,
    "enabled": False,
}
SKILLS = {"sources": [{"type": "github", "source": "o/r", "skills": ["a"], "ref": "main", "subpath": "s"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    folder = tmp_path_factory.mktemp("config")
    (folder / "home").mkdir()
    with our_server(folder, env={"HOME": str(folder / "home")}) as running:
        yield running


@pytest.fixture
async def client(server: ServerProcess) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as found:
        yield found


def params(kind: str, directory: Path | str, name: str) -> dict[str, str]:
    return {"directory": str(directory), "mcpName" if kind == "mcp" else "skillName": name}


async def call(
    client: httpx2.AsyncClient, method: str, kind: str, directory: Path | str, name: str, body: Any = None
) -> tuple[int, Any]:
    """Return the status, and the body as JSON, if there is one."""
    response = await client.request(
        method, f"/v1/config/{kind}", params=params(kind, directory, name), json=body
    )
    return response.status_code, response.json() if response.content else None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(directory: Path, kind: str = "mcp") -> Any:
    return json.loads((directory / f".sandbox-agent/config/{kind}.json").read_text())


@pytest.mark.parametrize(("kind", "entry"), [("mcp", LOCAL), ("mcp", REMOTE), ("skills", SKILLS)])
async def test_an_entry_is_set_returned_and_deleted(
    client: httpx2.AsyncClient, tmp_path: Path, kind: str, entry: Any
) -> None:
    work = tmp_path / "new/work"
    assert (await call(client, "GET", kind, work, "x"))[0] == 404
    assert await call(client, "DELETE", kind, work, "x") == (204, None)
    assert not work.exists()
    assert await call(client, "PUT", kind, work, "x", entry) == (204, None)
    assert await call(client, "GET", kind, work, "x") == (200, entry)
    assert content(work, kind) == {"x": entry}
    path = work / f".sandbox-agent/config/{kind}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await call(client, "DELETE", kind, work, "x") == (204, None)
    status, problem = await call(client, "GET", kind, work, "x")
    assert (status, problem["type"]) == (404, "urn:sandbox-agent:error:not_found")
    assert names(path.parent) == [path.name]


async def test_entries_besides_stay_as_they_are(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    folder = tmp_path / ".sandbox-agent/config"
    folder.mkdir(parents=True)
    (folder / "mcp.json").write_text('{"old": {"type": "stdio", "command": ["a", "b"], "later": [1.50]}}')
    assert await call(client, "PUT", "mcp", tmp_path, "new", LOCAL) == (204, None)
    assert '"later": [\n      1.50\n    ]' in (folder / "mcp.json").read_text()
    status, old = await call(client, "GET", "mcp", tmp_path, "old")
    assert (status, old) == (200, {"type": "local", "command": ["a", "b"], "args": []})


async def test_a_relative_folder_is_below_the_home(client: httpx2.AsyncClient, server: ServerProcess) -> None:
    assert await call(client, "PUT", "mcp", "work", "x", LOCAL) == (204, None)
    assert content(server.log.parent / "home/work") == {"x": LOCAL}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"type": "other"},
        {"type": "local"},
        {"type": "remote", "url": "u", "transport": "ws"},
        {"type": "local", "command": "x", "timeoutMs": -1},
        {"type": "local", "command": "x", "env": {"A": 1}},
        [],
    ],
)
async def test_an_invalid_entry_is_refused(client: httpx2.AsyncClient, tmp_path: Path, body: Any) -> None:
    status, problem = await call(client, "PUT", "mcp", tmp_path, "x", body)
    assert (status, problem["type"]) == (400, "urn:sandbox-agent:error:invalid_request")
    assert names(tmp_path) == []


async def test_a_request_without_folder_or_name_is_refused(client: httpx2.AsyncClient) -> None:
    for missing in ("directory", "mcpName"):
        given = {name: value for name, value in params("mcp", "/tmp", "x").items() if name != missing}
        response = await client.get("/v1/config/mcp", params=given)
        assert response.status_code == 400
        assert missing in response.json()["detail"]
    response = await client.get("/v1/config/mcp", params=params("mcp", "/tmp", "x" * 257))
    assert response.status_code == 400


@pytest.mark.parametrize("data", ["{ broken", '{"a": {"type": "weird"}}', "[]", '{"a": 1}'])
async def test_a_damaged_file_is_an_error_and_stays(
    client: httpx2.AsyncClient, tmp_path: Path, data: str
) -> None:
    assert await call(client, "PUT", "mcp", tmp_path, "x", LOCAL) == (204, None)
    path = tmp_path / ".sandbox-agent/config/mcp.json"
    path.write_text(data)
    for method, body in (("GET", None), ("PUT", LOCAL), ("DELETE", None)):
        status, problem = await call(client, method, "mcp", tmp_path, "x", body)
        assert status == 400
        assert f"{path} is damaged" in problem["detail"]
    assert path.read_text() == data


@pytest.mark.parametrize(
    "linked", [".sandbox-agent", ".sandbox-agent/config", ".sandbox-agent/config/mcp.json"]
)
async def test_a_link_in_place_of_a_folder_or_file_is_not_followed(
    client: httpx2.AsyncClient, tmp_path: Path, linked: str
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    (out / "config").mkdir(parents=True)
    for path in (out / "mcp.json", out / "config/mcp.json"):
        path.write_text('{"x": {"type": "local", "command": "secret"}}')
    (work / linked).parent.mkdir(parents=True)
    (work / linked).symlink_to(out / "mcp.json" if linked.endswith("json") else out)
    assert (await call(client, "GET", "mcp", work, "x"))[0] == 400
    for path in (out / "mcp.json", out / "config/mcp.json"):
        assert "secret" in path.read_text()


async def test_writers_of_two_servers_lose_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with our_server(tmp_path / "one") as one, our_server(tmp_path / "two") as two:
        async with (
            httpx2.AsyncClient(base_url=one.url, timeout=60) as first,
            httpx2.AsyncClient(base_url=two.url, timeout=60) as second,
        ):
            calls = [
                call(client, "PUT", "mcp", work, f"{prefix}{number}", LOCAL)
                for number in range(30)
                for prefix, client in (("a", first), ("b", second))
            ]
            assert await asyncio.gather(*calls) == [(204, None)] * 60
    assert sorted(content(work)) == sorted(f"{prefix}{number}" for prefix in "ab" for number in range(30))


def test_a_lock_that_is_not_released_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    config = ConfigFiles(FileTree(Places([], tmp_path)))
    config.change(str(tmp_path), MCP, "x", McpLocalServer(command="a"))
    holder = os.open(tmp_path / ".sandbox-agent/config", os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(files.StreamError, match="has locked"):
            config.change(str(tmp_path), MCP, "y", McpLocalServer(command="b"))
    finally:
        os.close(holder)
    assert list(config.read(str(tmp_path), MCP)) == ["x"]


def test_a_write_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ConfigFiles(FileTree(Places([], tmp_path)))
    config.change(str(tmp_path), MCP, "x", McpLocalServer(command="a"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(files.StreamError, match="No space left"):
        config.change(str(tmp_path), MCP, "y", McpLocalServer(command="b"))
    assert names(tmp_path / ".sandbox-agent/config") == ["mcp.json"]
    assert list(config.read(str(tmp_path), MCP)) == ["x"]


async def test_fs_root_excludes_other_folders(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/out").symlink_to(tmp_path)
    with our_server(tmp_path, "--fs-root", str(tmp_path / "root")) as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await call(client, "PUT", "mcp", tmp_path / "root/work", "x", LOCAL))[0] == 204
            for directory in (tmp_path / "other", tmp_path / "root/out/other"):
                for method, body in (("GET", None), ("PUT", LOCAL), ("DELETE", None)):
                    status, problem = await call(client, method, "mcp", directory, "x", body)
                    assert (status, problem["type"]) == (403, "urn:sandbox-agent:error:permission_denied")
    assert not (tmp_path / "other").exists()


async def test_either_server_reads_what_the_other_has_written(tmp_path: Path) -> None:
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    written = {"mcp": {"local": LOCAL, "remote": REMOTE}, "skills": {"s": SKILLS}}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    with our_server(tmp_path / "ours") as our, published_server(tmp_path / "theirs") as their:
        async with (
            httpx2.AsyncClient(base_url=our.url, timeout=30) as ours,
            httpx2.AsyncClient(base_url=their.url, timeout=30) as theirs,
        ):
            works = tmp_path / "a", tmp_path / "b"
            for kind, entries in written.items():
                for name, entry in entries.items():
                    assert await call(ours, "PUT", kind, works[0], name, entry) == (204, None)
                    assert await call(theirs, "PUT", kind, works[1], name, entry) == (204, None)
                    assert await call(theirs, "GET", kind, works[0], name) == (200, entry)
                    assert await call(ours, "GET", kind, works[1], name) == (200, entry)
                files_ = [(work / f".sandbox-agent/config/{kind}.json").read_text() for work in works]
                assert json.loads(files_[0]) == json.loads(files_[1])
                assert sorted(files_[0].split("\n")) == sorted(files_[1].split("\n"))
