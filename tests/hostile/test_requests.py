"""Clients that break the rules before anyone knows who they are: they are cut off, others are served."""

from __future__ import annotations

import contextlib
import random
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from sandbox_agent.server.config import ServerConfig
from sandbox_agent.server.http.limited_protocol import LimitedProtocol
from sandbox_agent.server.http.turns import MAX_DISCARDING
from tests.hostile.attackers import HELLO, LARGE, START
from tests.hostile.kit import connect, read_all, read_status, resident_bytes, send_until_closed
from tests.support.servers import ServerProcess, our_server

MIB = 1024 * 1024
TOKEN = "a-long-secret"
HEALTHY = b'{"status":"ok"}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with short times."""
    options = ["--head-timeout", "1", "--write-timeout", "1"]
    with our_server(tmp_path_factory.mktemp("hostile"), *options, token=TOKEN) as running:
        yield running


def _read_until(connection: socket.socket, text: bytes, times: int) -> bytes:
    """Return what the server sends, up to a text that comes so often."""
    found = b""
    while found.count(text) < times:
        data = connection.recv(65536)
        assert data, f"the server closed the connection after {found[-200:]!r}"
        found += data
    return found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (START + b"X: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (START + b"X" * 70_000 + b": x\r\n\r\n", 431),
        (START + b"X: x\r\n" * 101 + b"\r\n", 431),
        (START + b"".join(b"X%d: %s\r\n" % (number, b"x" * 900) for number in range(90)) + b"\r\n", 431),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /?" + b"x" * 20_000, 414),
        (HELLO, 400),
        (b"\x00" * 1000, 400),
        (b"GET / HTTP/1.1\nHost: localhost\nX\n\n", 400),
        (START + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (START + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (START + b"X: x", 408),
        (START[:10], 408),
    ],
)
def test_a_head_beyond_the_limits_is_refused(server: ServerProcess, data: bytes, status: int) -> None:
    with connect(server, data) as connection:
        assert read_status(connection) == status


@pytest.mark.parametrize("start", [START + b"X: ", START + b"X", b"GET /", START], ids=repr)
def test_a_head_without_end_costs_no_memory(server: ServerProcess, start: bytes) -> None:
    before = resident_bytes(server.pid)
    with connect(server, start) as connection:
        data = b"A: x\r\n" * 10_000 if start == START else b"x" * 60_000
        assert send_until_closed(connection, data, 100 * MIB) < 20 * MIB
    assert resident_bytes(server.pid) - before < 8 * MIB


def test_a_connection_that_says_nothing_is_closed(server: ServerProcess) -> None:
    with connect(server) as connection:
        assert read_all(connection) == b""


def test_a_connection_that_is_kept_alive_is_not_closed(server: ServerProcess) -> None:
    with connect(server) as connection:
        for pause in (0, 1.5, 0):  # longer than a head may take
            time.sleep(pause)  # the time without a request is what is tested
            connection.sendall(START + b"\r\n")
            assert _read_until(connection, HEALTHY, 1).startswith(b"HTTP/1.1 200 OK")


def test_a_body_may_take_longer_than_a_head(server: ServerProcess) -> None:
    with connect(server, START.replace(b"GET", b"POST") + b"Content-Length: 2\r\n\r\n") as connection:
        time.sleep(1.5)  # the time is what is tested
        connection.sendall(b"{}")
        assert _read_until(connection, b" 401 Unauthorized\r\n", 1)


def test_a_large_body_of_a_refused_request_is_received_and_its_connection_kept(server: ServerProcess) -> None:
    head = START.replace(b"GET", b"POST") + b"Content-Length: 20000000\r\n\r\n"
    with connect(server, head + bytes(20_000_000) + START + b"\r\n") as connection:
        assert _read_until(connection, HEALTHY, 1).count(b" 401 Unauthorized\r\n") == 1


def test_refused_requests_with_endless_bodies_do_not_keep_out_others(server: ServerProcess) -> None:
    head = START.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n"
    with contextlib.ExitStack() as stack:
        endless = [
            stack.enter_context(connect(server, head + b"1\r\nx\r\n")) for _ in range(MAX_DISCARDING + 8)
        ]
        assert all(_read_until(connection, b" 401 ", 1) for connection in endless)
        for connection in endless[:8]:
            read_all(connection)  # it is closed for newer ones
        with connect(server, head + b"1\r\nx\r\n0\r\n\r\n" + START + b"\r\n") as connection:
            assert _read_until(connection, HEALTHY, 1)


def test_a_client_that_does_not_read_loses_its_connection(tmp_path: Path) -> None:
    with our_server(tmp_path, "--write-timeout", "1") as server, connect(server, LARGE * 60) as connection:
        deadline = time.monotonic() + 20
        is_closed = False
        while not is_closed and time.monotonic() < deadline:
            time.sleep(0.05)  # polls for the end
            try:
                connection.sendall(b"\r\n")
            except ConnectionError:
                is_closed = True
        assert is_closed


class Transport:
    """A transport whose client reads as the test says."""

    def __init__(self) -> None:
        self.size, self.aborted = 0, False

    def get_write_buffer_size(self) -> int:
        return self.size

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(
    ("reads", "aborted"),
    [("drains it, and it is full again", False), ("some of it", False), ("nothing", True)],
)
def test_a_client_keeps_its_connection_while_it_reads(reads: str, aborted: bool) -> None:
    transport = Transport()
    protocol: Any = LimitedProtocol.__new__(LimitedProtocol)
    protocol._limits, protocol._rejection, protocol._head_since = ServerConfig(write_timeout=60), None, None
    protocol._unwritten, protocol._unwritten_since = 0, 0.0
    protocol.transport, protocol.flow = transport, FlowControl(cast("Any", transport))
    for second in range(200):
        protocol.pause_writing()
        transport.size = 900_000 - second if reads == "some of it" else 70_000 + second * 100
        if reads == "nothing":
            transport.size = 70_000
        protocol.check_times(float(second))
        if reads == "drains it, and it is full again":
            protocol.resume_writing()
    assert transport.aborted is aborted


def test_more_requests_at_once_than_are_answered_end_the_connection(server: ServerProcess) -> None:
    before = resident_bytes(server.pid)
    with connect(server, (START + b"\r\n") * 20_000) as connection:
        assert read_all(connection).count(b"200 OK") < 200
    assert resident_bytes(server.pid) - before < 16 * MIB


def test_requests_that_are_cut_anywhere_are_answered(server: ServerProcess) -> None:
    generator = random.Random(1)
    requests = (START + b"X: y\r\n\r\n") * 20
    cuts = sorted(generator.sample(range(1, len(requests)), 40))
    with connect(server) as connection:
        for begin, end in zip([0, *cuts], [*cuts, len(requests)], strict=True):
            connection.sendall(requests[begin:end])
        _read_until(connection, HEALTHY, 20)


def test_a_flood_of_bad_requests_is_a_line_of_the_log(server: ServerProcess) -> None:
    before = server.log.read_text().count("was refused before it was read")
    for _ in range(50):
        with connect(server, HELLO) as connection:
            read_all(connection)
    assert server.log.read_text().count("was refused before it was read") - before <= 1
    assert "Traceback" not in server.log.read_text()
    assert "Invalid HTTP request" not in server.log.read_text()


def test_more_connections_than_the_limit_are_refused_until_others_end(tmp_path: Path) -> None:
    with our_server(tmp_path, "--max-connections", "5", token=TOKEN) as server:
        held = [connect(server, START) for _ in range(5)]
        try:
            with connect(server, START + b"\r\n") as refused:
                answer = read_all(refused)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer
        finally:
            for connection in held:
                connection.close()
        assert _health(server) < 20


def _health(server: ServerProcess) -> float:
    """Return how long health takes, once it is answered."""
    began = time.monotonic()
    while True:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{server.own_url}/v1/health", timeout=30) as response,
        ):
            assert response.status == 200
            return time.monotonic() - began
