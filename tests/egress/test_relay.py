"""The relay in the sandbox: connections and refusals, also when the proxy is gone and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import anyio
import pytest

from sandbox_agent.egress import relay as relay_module
from sandbox_agent.egress.refusals import Refusal
from sandbox_agent.egress.relay import Relay, Where, parse_where
from sandbox_agent.errors import InvalidRequestError
from tests.egress.kit import MOMENT, OK, Origin, Proxied, proxying

pytestmark = pytest.mark.anyio


async def test_connections_reach_the_proxy_and_refusals_come_back() -> None:
    refused: asyncio.Queue[Refusal] = asyncio.Queue()
    async with Origin().run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        relay = Relay(Where(None, "127.0.0.1", proxy.port), refused.put_nowait)
        async with relay.run():
            inside = Proxied(relay.port)
            assert await inside.get(f"http://a.test:{origin.port}/") == OK
            with anyio.fail_after(MOMENT):
                while refused.empty():  # the subscription may be younger than the first refusal
                    assert b" 403 " in await inside.get("http://b.test/", "Proxy-Authorization: Basic eDp4")
            refusal = refused.get_nowait()
            assert (refusal.user, refusal.host, refusal.port) == ("x", "b.test", 80)


async def test_more_connections_than_the_bound_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MAX_CONNECTIONS", 1)
    async with proxying() as proxy:
        relay = Relay(Where(None, "127.0.0.1", proxy.port), lambda _: None)
        async with relay.run():
            inside = Proxied(relay.port)
            async with inside.client() as first:
                await first.send(b"GET /refusals HTTP/1.1\r\n\r\n")
                assert b" 200 " in await first.head()
                async with inside.client() as second:
                    with contextlib.suppress(ConnectionError):
                        assert await second.rest() == b""
            answer = b""
            with anyio.fail_after(MOMENT):
                while not answer:  # until the first is gone
                    with contextlib.suppress(ConnectionError):
                        answer = await inside.get("/")


async def test_half_closes_are_passed_on_through_the_relay() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.write_eof()

    async with Origin(echo).run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        relay = Relay(Where(None, "127.0.0.1", proxy.port), lambda _: None)
        async with relay.run(), Proxied(relay.port).client() as client:
            await client.connect(f"a.test:{origin.port}")
            await client.send(b"SSH-2.0-x\r\n")
            client.writer.write_eof()
            assert await client.rest() == b"SSH-2.0-x\r\n"


async def test_a_proxy_that_is_gone_is_an_error_and_one_that_is_back_is_used(tmp_path: Path) -> None:
    refused: asyncio.Queue[Refusal] = asyncio.Queue()
    async with Origin().run() as origin:
        async with proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
            relay = Relay(Where(None, "127.0.0.1", proxy.port), refused.put_nowait)
            running = relay.run()
            await running.__aenter__()
            inside = Proxied(relay.port)
            assert await inside.get(f"http://a.test:{origin.port}/") == OK
        try:
            answer = await inside.get(f"http://a.test:{origin.port}/")
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b"the proxy of the sandbox cannot be reached" in answer
            async with proxying("a.test", port=proxy.port):
                with anyio.fail_after(MOMENT):
                    while refused.empty():
                        assert b" 407 " in await inside.get("http://b.test/")
        finally:
            await running.__aexit__(None, None, None)


def test_where_the_proxy_listens_is_a_socket_or_an_address() -> None:
    assert parse_where("unix:/run/proxy.sock") == Where(Path("/run/proxy.sock"))
    assert parse_where("http://proxy:3128") == Where(None, "proxy", 3128)
    for invalid in (
        "unix:relative",
        "proxy:3128",
        "https://proxy:3128",
        "http://proxy",
        "http://u@p:1",
        "http://[::1",
    ):
        with pytest.raises(InvalidRequestError, match="use unix:/PATH or http://HOST:PORT"):
            parse_where(invalid)
