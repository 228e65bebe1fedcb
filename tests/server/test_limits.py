"""Limits: bodies that are too large, requests that take too long, and prompts that may."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Generator

import anyio
import pytest

from tests.server.talk import client_of, envelope, talk
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

LIMIT = 100_000

SLOW = """
import json, sys
held = []
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "release":
        for each in held: print(json.dumps({"id": each, "result": "late"}), flush=True)
        held = []
        print(json.dumps({"id": message["id"], "result": None}), flush=True)
    elif message["method"] == "quick":
        print(json.dumps({"id": message["id"], "result": None}), flush=True)
    else:
        held.append(message["id"])
"""

# Asks for a permission, then reads nothing until somebody writes to the pipe it is given.
BUSY = """
import json, sys
print(json.dumps({"id": 0, "method": "session/request_permission", "params": {}}), flush=True)
open(sys.argv[1]).read()
for line in sys.stdin:
    message = json.loads(line)
    if message.get("id") == 0:
        print(json.dumps({"method": "permitted", "params": message["result"]}), flush=True)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """A server of small limits."""
    options = ("--max-body-bytes", str(LIMIT), "--request-timeout", "0.3")
    with our_server(tmp_path_factory.mktemp("limits"), *options) as running:
        put_launcher(running.log.parent / "data", "slow", [sys.executable, "-c", SLOW])
        yield running


def padded(size: int) -> bytes:
    empty = json.dumps(envelope("initialize", {"protocolVersion": 1, "pad": ""}, 1)).encode()
    return empty.replace(b'"pad": ""', b'"pad": "' + b"x" * (size - len(empty)) + b'"')


async def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_not(small: ServerProcess) -> None:
    async with talk(small, open_=False) as talking:
        assert (await talking.post(padded(LIMIT), agent="mock")).status_code == 200
        response = await talking.post(padded(LIMIT + 1), agent="mock")
        assert response.status_code == 413
        problem = response.json()
        assert problem["type"] == "urn:sandbox-agent:error:payload_too_large"
        assert "--max-body-bytes" in problem["detail"]
        assert (await talking.post(envelope("session/list", {}, 2))).status_code == 200


async def test_a_chunked_body_without_a_length_is_limited_too(small: ServerProcess) -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b" " * 10_000

    async with client_of(small) as client:
        headers = {"content-type": "application/json"}
        response = await client.post("/v1/acp/chunked", content=pieces(11), headers=headers)
        assert response.status_code == 413
        response = await client.post("/v1/acp/chunked", content=pieces(10), headers=headers)
        assert response.status_code == 400


def test_a_length_that_is_too_large_is_refused_before_the_body_is_sent(small: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/acp/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_away_in_its_body_harms_nobody(small: ServerProcess) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", small.port), timeout=20) as raw:
            raw.sendall(
                b"POST /v1/acp/x?agent=mock HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b'Content-Length: 500\r\n\r\n{"jsonrpc'
            )
    with socket.create_connection(("127.0.0.1", small.port), timeout=20) as raw:
        raw.sendall(b"GET /v1/acp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
        assert answer.endswith(b'{"servers":[]}')


@pytest.mark.parametrize(
    "noise", [b"\0" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00" * 20, b"GET / HTTP/9.9\r\n\r\n"]
)
def test_noise_on_the_socket_harms_nobody(small: ServerProcess, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=20) as raw:
        raw.sendall(noise)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
            pass
    with socket.create_connection(("127.0.0.1", small.port), timeout=20) as raw:
        raw.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")


async def test_a_request_without_an_answer_is_a_504_and_its_late_answer_is_in_the_feed(
    small: ServerProcess,
) -> None:
    async with talk(small, open_=False) as talking:
        response = await talking.post(envelope("dawdle", {}, 1), agent="slow")
        assert response.status_code == 504
        problem = response.json()
        assert problem["type"] == "urn:sandbox-agent:error:timeout"
        assert "0.3 s" in problem["detail"]
        # the same id again, while the first may still be answered: each has its own answer
        assert (await talking.post(envelope("quick", {}, 1))).json() == {"id": 1, "result": None}
        await talking.post(envelope("release", {}, 2))
        async with talking.stream() as stream:
            assert (await stream.until('"late"'))["result"] == "late"


async def test_an_answer_that_the_agent_did_not_take_in_time_may_be_given_again(
    small: ServerProcess,
) -> None:
    gate = small.log.parent / "gate"
    os.mkfifo(gate)
    put_launcher(small.log.parent / "data", "busy", [sys.executable, "-c", BUSY, str(gate)])
    answer = {"jsonrpc": "2.0", "id": 0, "result": {"outcome": "yes"}}
    async with talk(small, open_=False) as talking:
        await talking.post(envelope("hello"), agent="busy")
        async with talking.stream() as stream:
            await stream.until("request_permission")
            filler = envelope("filler", {"pad": "x" * (LIMIT - 1000)})
            assert (await talking.post(filler)).status_code == 202  # the pipe took a part of it
            refused = await talking.post(answer)
            assert refused.status_code == 504
            assert "was not sent the answer" in refused.json()["detail"]
            await anyio.Path(gate).write_text("")
            assert (await talking.post(answer)).status_code == 202
            assert (await stream.until("permitted"))["params"] == {"outcome": "yes"}


async def test_a_prompt_never_times_out(small: ServerProcess) -> None:
    async with talk(small, open_=False) as talking:
        answers: list[object] = []

        async def prompting() -> None:
            response = await talking.post(envelope("session/prompt", {}, 9), agent="slow")
            answers.append(response.json())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prompting)
            # several timeouts of other requests pass meanwhile
            for number in range(20, 24):
                response = await talking.post(envelope("dawdle", {}, number), agent="slow")
                assert response.status_code == 504
            assert answers == []
            await talking.post(envelope("release", {}, 30))
        assert answers == [{"id": 9, "result": "late"}]
