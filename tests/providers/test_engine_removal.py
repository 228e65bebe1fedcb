"""Removing a container while its process ends by itself. The answers were recorded from Podman."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.engine.api import EngineApi

pytestmark = pytest.mark.anyio

_REFUSAL = (
    "cannot remove container 9d11 as it could not be stopped: sending SIGKILL to container 9d11: "
    "container state improper: stopped"
)
IMPROPER = (500, _REFUSAL)


@contextlib.asynccontextmanager
async def engine_that_answers(folder: Path, *answers: tuple[int, str]) -> AsyncGenerator[list[str]]:
    """Listen as Podman, give these answers one after the other, and yield the request lines."""
    requests: list[str] = []
    remaining = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0])
        status, message = remaining.pop(0)
        body = json.dumps({"message": message}).encode() if message else b""
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, folder / "engine.sock")
    async with server:
        yield requests


async def test_a_container_that_ends_while_it_is_removed_is_removed(tmp_path: Path) -> None:
    async with engine_that_answers(tmp_path, IMPROPER, (204, "")) as requests:
        await EngineApi("podman", f"unix://{tmp_path}/engine.sock").remove("box")
    assert len(requests) == 2
    assert all(line.startswith("DELETE ") and "/containers/box?" in line for line in requests)


async def test_a_container_that_is_gone_at_the_second_try_is_removed(tmp_path: Path) -> None:
    async with engine_that_answers(tmp_path, IMPROPER, (404, "no such container")):
        await EngineApi("podman", f"unix://{tmp_path}/engine.sock").remove("box")


async def test_a_container_that_stays_is_reported_with_the_words_of_the_engine(tmp_path: Path) -> None:
    async with engine_that_answers(tmp_path, IMPROPER, IMPROPER, IMPROPER) as requests:
        with pytest.raises(SandboxAgentError, match="could not be stopped"):
            await EngineApi("podman", f"unix://{tmp_path}/engine.sock").remove("box")
    assert len(requests) == 3


async def test_a_container_that_another_request_removes_is_gone(tmp_path: Path) -> None:
    gone = (500, "container 9d11 does not exist in database: no such container")
    async with engine_that_answers(tmp_path, gone, gone):
        api = EngineApi("podman", f"unix://{tmp_path}/engine.sock")
        assert await api.inspect("box") is None
        await api.remove("box")


async def test_another_refusal_is_not_repeated(tmp_path: Path) -> None:
    async with engine_that_answers(tmp_path, (500, "the storage is read-only")) as requests:
        with pytest.raises(SandboxAgentError, match="read-only"):
            await EngineApi("podman", f"unix://{tmp_path}/engine.sock").remove("box")
    assert len(requests) == 1
