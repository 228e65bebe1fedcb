"""Requests over connections that were kept and have ended since."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import httpx2
import pytest

from sandbox_agent import ConnectionLostError
from sandbox_agent.client.http import Http

pytestmark = pytest.mark.anyio


class Server(httpx2.AsyncBaseTransport):
    """Answers after a number of connections have ended without a response."""

    def __init__(self, error: type[httpx2.TransportError], ended: int) -> None:
        self.error, self.ended, self.requests = error, ended, 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        if self.requests <= self.ended:
            raise self.error("ended", request=request)
        return httpx2.Response(200, json={"status": "ok"})


@pytest.mark.parametrize("error", [httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError])
async def test_a_get_over_a_connection_that_has_ended_is_sent_once_more(
    error: type[httpx2.TransportError],
) -> None:
    server = Server(error, ended=1)
    assert await Http(base_url="http://sandbox", transport=server).json("GET", "/v1/health") == {
        "status": "ok"
    }
    assert server.requests == 2
    server = Server(error, ended=2)
    with pytest.raises(ConnectionLostError, match="GET /v1/health: no response"):
        await Http(base_url="http://sandbox", transport=server).json("GET", "/v1/health")
    assert server.requests == 2


async def test_a_request_that_changes_something_is_sent_once() -> None:
    server = Server(httpx2.ReadError, ended=1)
    with pytest.raises(ConnectionLostError):
        await Http(base_url="http://sandbox", transport=server).json("POST", "/v1/sessions/x")
    assert server.requests == 1


async def test_clients_read_the_authorities_of_this_machine_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[str | None] = []

    def create_ssl_context() -> ssl.SSLContext:
        read.append(os.environ.get("SSL_CERT_DIR"))
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(httpx2, "create_ssl_context", create_ssl_context)
    for folder in ("a", "a", "b"):
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / folder))
        for url in ("http://127.0.0.1:1", "https://127.0.0.1:1", "https://elsewhere.example"):
            await Http(base_url=url).aclose()
    assert read == [str(tmp_path / "a"), str(tmp_path / "b")]
