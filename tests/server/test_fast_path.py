"""The fast path answers an envelope as the application does, and leaves unusual requests to it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import anyio
import pytest

from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.connection import AgentConnection
from sandbox_agent.server.http.fast_path import FastPath
from tests.server.talk import envelope, talk
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

JSON = (b"content-type", b"application/json")
SIZE = (b"content-length", b"10")


class _OneConnection:
    """A bridge that knows one live agent, ``here``."""

    def peek(self, server_id: str) -> AgentConnection | None:
        return cast("AgentConnection", self) if server_id == "here" else None


def _fast_path(token: str | None = None) -> FastPath:
    return FastPath(cast("Bridge", _OneConnection()), token, 1024)


@pytest.mark.parametrize("name", [[], [(b"sandbox-agent-client", b"")]])
def test_a_plain_envelope_for_a_live_agent_takes_the_fast_path(name: list[tuple[bytes, bytes]]) -> None:
    headers = [JSON, SIZE, (b"accept", b"*/*"), (b"user-agent", b"x"), *name]
    assert _fast_path().find(b"/v1/acp/here", headers) is not None


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (b"/v1/acp/gone", [JSON, SIZE]),
        (b"/v1/acp/here?agent=mock", [JSON, SIZE]),
        (b"/v1/acp/he%72e", [JSON, SIZE]),
        (b"/v1/acp", [JSON, SIZE]),
        (b"/v1/agents", [JSON, SIZE]),
        (b"/v1/acp/here", [SIZE]),
        (b"/v1/acp/here", [JSON, JSON, SIZE]),
        (b"/v1/acp/here", [(b"content-type", b"text/plain"), SIZE]),
        (b"/v1/acp/here", [JSON, SIZE, (b"accept", b"text/html")]),
        (b"/v1/acp/here", [JSON, SIZE, (b"origin", b"http://evil.example")]),
        (b"/v1/acp/here", [JSON, SIZE, (b"expect", b"100-continue")]),
        (b"/v1/acp/here", [JSON, SIZE, (b"upgrade", b"websocket")]),
        (b"/v1/acp/here", [JSON, (b"transfer-encoding", b"chunked")]),
        (b"/v1/acp/here", [JSON, (b"content-length", b"1025")]),
        (b"/v1/acp/here", [JSON, (b"content-length", b"-1")]),
        (b"/v1/acp/here", [JSON, SIZE, (b"sandbox-agent-client", b"a")]),
        (b"/v1/acp/here", [JSON, SIZE, (b"idempotency-key", b"a")]),
        (b"/v1/acp/here", [JSON, SIZE, (b"prefer", b"respond-async")]),
    ],
)
def test_anything_unusual_does_not_take_the_fast_path(url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    assert _fast_path().find(url, headers) is None


@pytest.mark.parametrize("given", [None, b"Bearer wrong", b"Bearer ", b"Basic secret", b"secret"])
def test_without_the_token_nothing_takes_the_fast_path(given: bytes | None) -> None:
    headers = [JSON, SIZE] if given is None else [JSON, SIZE, (b"authorization", given)]
    assert _fast_path("secret").find(b"/v1/acp/here", headers) is None
    assert _fast_path("secret").find(b"/v1/acp/here", [JSON, SIZE, (b"authorization", b"Bearer secret")])


@asynccontextmanager
async def _socket(
    server: ServerProcess,
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        with anyio.fail_after(30):
            yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def _post(path: str, body: object, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(content)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def test_pipelined_requests_are_answered_in_their_order(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, _socket(server) as (reader, writer):
        bodies = [
            envelope("session/prompt", talking.prompting("sleep 0.2"), "slow"),
            envelope("session/list", {}, "quick"),
            envelope("session/list", {}, "last"),
        ]
        writer.write(b"".join(_post(talking.path, body) for body in bodies))
        answers = [await _answer(reader) for _ in bodies]
    assert [json.loads(body)["id"] for _, _, body in answers] == ["slow", "quick", "last"]


async def test_a_body_that_comes_byte_by_byte_is_taken_whole(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, _socket(server) as (reader, writer):
        for byte in _post(talking.path, envelope("session/list", {}, 7)):
            writer.write(bytes([byte]))
            await writer.drain()
        status, headers, body = await _answer(reader)
    assert (status, json.loads(body)["id"]) == (200, 7)
    assert headers["content-type"] == "application/json"
    assert "date" in headers


async def test_the_connection_closes_after_the_answer_where_the_client_wants_it(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, _socket(server) as (reader, writer):
        writer.write(_post(talking.path, envelope("session/list", {}, 1), "connection: close"))
        status, headers, _ = await _answer(reader)
        assert await reader.read() == b""
    assert (status, headers["connection"]) == (200, "close")


async def test_an_envelope_that_is_refused_leaves_the_connection_open(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, _socket(server) as (reader, writer):
        refused: tuple[object, ...] = ([], {"id": True, "method": "x"}, "text", {"id": {}, "method": "x"})
        for wrong in refused:
            writer.write(_post(talking.path, wrong))
            assert (await _answer(reader))[0] == 400
        writer.write(_post(talking.path, {"jsonrpc": "2.0", "method": "session/cancel"}))
        assert (await _answer(reader))[0] == 202
        writer.write(_post(talking.path, envelope("session/list", {}, 2)))
        assert (await _answer(reader))[0] == 200


async def test_an_agent_that_dies_answers_with_the_problem(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, _socket(server) as (reader, writer):
        writer.write(_post(talking.path, envelope("session/prompt", talking.prompting("die 3"), 1)))
        status, headers, body = await _answer(reader)
        assert (status, headers["content-type"]) == (500, "application/problem+json")
        assert json.loads(body)["exitCode"] == 3
        writer.write(_post(talking.path, envelope("session/list", {}, 2)))
        assert (await _answer(reader))[0] == 500


async def test_a_client_that_hangs_up_leaves_its_turn_running(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, talking.stream() as stream:
        async with _socket(server) as (_, writer):
            prompt = envelope("session/prompt", talking.prompting("sleep 0.2"), "hung-up")
            writer.write(_post(talking.path, prompt))
            await writer.drain()
            await stream.until("session/update")
        with anyio.fail_after(30):
            answer = await stream.until('"hung-up"')
    assert answer["result"]["stopReason"] == "end_turn"


async def test_a_wrong_token_is_refused_on_a_live_connection(tmp_path: Path) -> None:
    token = uuid.uuid4().hex
    with our_server(tmp_path, token=token) as server:
        async with talk(server) as talking, _socket(server) as (reader, writer):
            body = envelope("session/list", {}, 1)
            for header, expected in ((f"Bearer {token}", 200), ("Bearer wrong", 401)):
                writer.write(_post(talking.path, body, f"authorization: {header}"))
                assert (await _answer(reader))[0] == expected
            writer.write(_post(talking.path, body))
            assert (await _answer(reader))[0] == 401
