"""Downloads of large files: whole, in order, and without a hold on the server, whatever the client does."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx2
import pytest

from tests.client.checks import until
from tests.server.files.test_files import open_files
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
# More than the sockets of a connection hold.
SIZE = 64 * MIB
# More than the server has threads for.
CLIENTS = 60


@pytest.fixture
def large(home: Path) -> Path:
    """A large file, no two blocks of which are the same."""
    path, block = home / "large", os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(SIZE // MIB):
            file.write(number.to_bytes(8, "big") + block[8:])
    return path


def request(path: Path, *headers: str, version: str = "1.1") -> bytes:
    """Return a request for a file."""
    lines = [f"GET /v1/fs/file?path={quote(str(path))} HTTP/{version}", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@asynccontextmanager
async def connect(
    port: int, *requests: bytes
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"".join(requests))
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Read a head; return its status and the length of its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    return int(head.split()[1]), int(head.partition("content-length: ")[2].split()[0])


async def test_requests_of_one_connection_are_answered_whole_and_in_order(
    server: tuple[ServerProcess, Path], client: httpx2.AsyncClient, large: Path
) -> None:
    content = await anyio.Path(large).read_bytes()
    span = f"Range: bytes={MIB - 5}-{SIZE - 7}"
    requests = [request(large), request(large, span), request(large.parent), request(large, version="1.0")]
    async with connect(server[0].port, *requests) as (reader, _):
        with anyio.fail_after(60):
            # This client reads when another one has read everything.
            answer = await client.get("/v1/fs/file", params={"path": str(large)})
            assert answer.content == content
            for status, wanted in ((200, content), (206, content[MIB - 5 : SIZE - 6])):
                assert await read_head(reader) == (status, len(wanted))
                assert await reader.readexactly(len(wanted)) == wanted
            status, size = await read_head(reader)
            assert status == 400  # it is a folder
            await reader.readexactly(size)
            assert await read_head(reader) == (200, SIZE)
            assert await reader.read(-1) == content  # a client of HTTP/1.0 reads to the end


async def test_a_download_of_a_file_that_became_shorter_is_cut_off(
    server: tuple[ServerProcess, Path], large: Path
) -> None:
    async with connect(server[0].port, request(large)) as (reader, _):
        with anyio.fail_after(60):
            assert await read_head(reader) == (200, SIZE)
            os.truncate(large, MIB)
            received = await reader.read(-1)  # not a whole one: the connection is closed before
    assert len(received) < SIZE
    await until(lambda: str(large) not in open_files(server[0].pid))


async def test_clients_that_do_not_read_hold_no_thread_and_lose_their_connection(
    tmp_path: Path, large: Path
) -> None:
    with our_server(tmp_path, "--write-timeout", "3") as server:
        clients: list[socket.socket] = []
        try:
            for _ in range(CLIENTS):
                client = socket.create_connection(("127.0.0.1", server.port))
                client.sendall(request(large))
                clients.append(client)
            await until(lambda: open_files(server.pid).count(str(large)) == CLIENTS)
            async with httpx2.AsyncClient(base_url=server.url, timeout=30) as other:
                answer = await other.get("/v1/fs/file", params={"path": str(large)})
                assert answer.content == await anyio.Path(large).read_bytes()
            await until(lambda: str(large) not in open_files(server.pid))
        finally:
            for client in clients:
                client.close()


async def test_a_client_that_disconnects_ends_its_download(
    server: tuple[ServerProcess, Path], large: Path
) -> None:
    async with connect(server[0].port, request(large)) as (reader, _):
        with anyio.fail_after(60):
            assert await read_head(reader) == (200, SIZE)
            await reader.readexactly(MIB)
            assert str(large) in open_files(server[0].pid)
    await until(lambda: str(large) not in open_files(server[0].pid))
