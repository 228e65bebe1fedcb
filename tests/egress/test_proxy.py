"""What clients reach through the proxy, and what they do not, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import anyio
import pytest

from sandbox_agent.egress import allow_list, streams
from sandbox_agent.egress.dial import Upstream, read_upstreams
from sandbox_agent.egress.proxy import Bounds
from sandbox_agent.egress.tls import UNRECOGNIZED_NAME
from sandbox_agent.errors import InvalidRequestError
from tests.egress.kit import OK, Origin, hello, proxying

pytestmark = pytest.mark.anyio

USER = "Proxy-Authorization: Basic YWdlbnQ6c2VjcmV0"  # agent:secret


async def test_a_request_for_a_url_reaches_the_host_of_the_list() -> None:
    async with Origin().run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        answer = await proxy.get(f"http://a.test:{origin.port}/x", "Host: other.test", USER)
        assert answer == OK
        assert origin.received == [
            f"GET /x HTTP/1.1\r\nhost: a.test:{origin.port}\r\nconnection: close\r\n\r\n".encode()
        ]


async def test_bodies_arrive_whole() -> None:
    async with Origin(closes=False).run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        url = f"http://a.test:{origin.port}/"
        body = bytes(range(256)) * 4_000
        for framing, sent in (
            (f"Content-Length: {len(body)}", body),
            ("Transfer-Encoding: chunked", b"2\r\nhi\r\n0\r\n\r\n"),
        ):
            async with proxy.client() as client:
                await client.send(f"POST {url} HTTP/1.1\r\n{framing}\r\n\r\n".encode() + sent)
                client.writer.write_eof()
                assert await client.reader.readexactly(len(OK)) == OK
        for ended in origin.ended:
            await ended.wait()
        assert origin.received[0].endswith(b"\r\n\r\n" + body)
        assert origin.received[1].endswith(b"\r\n\r\n2\r\nhi\r\n0\r\n\r\n")


async def test_a_tunnel_passes_on_a_tls_hello_and_half_closes() -> None:
    async with Origin().run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        async with proxy.client() as client:
            await client.connect(f"a.test:{origin.port}")
            sent = hello("a.test")
            await client.send(sent[:7])
            await client.send(sent[7:])
            assert await client.reader.readexactly(len(OK)) == OK
            client.writer.write_eof()
            await origin.ended[0].wait()
            assert await client.rest() == b""
        assert origin.received == [sent]


async def test_a_server_that_speaks_first_is_heard_on_a_port_of_the_list() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n")
        writer.write(await reader.read(100))
        writer.write_eof()
        await reader.read()

    async with (
        Origin(greet).run() as origin,
        proxying(f"a.test:{origin.port}=127.0.0.1") as proxy,
        proxy.client() as client,
    ):
        await client.connect(f"a.test:{origin.port}")
        assert await client.reader.readline() == b"SSH-2.0-x\r\n"
        await client.send(b"SSH-2.0-y\r\n")
        assert await client.rest() == b"SSH-2.0-y\r\n"


NAMES = {
    "inside.test": ["10.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "loop.test": ["127.0.0.1", "::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "any.test": ["0.0.0.0"],
}


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_of_the_list_with_an_address_of_this_machine_or_its_network_is_refused(
    name: str,
) -> None:
    async with proxying("*.test", names=NAMES) as proxy:
        for request in (f"CONNECT {name}:443 HTTP/1.1", f"GET http://{name}/ HTTP/1.1"):
            answer = await proxy.talk(f"{request}\r\n{USER}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"is not one of the internet" in answer
            assert f"add '{name}:".encode() in answer
        assert proxy.resolved == [name, name]  # each time: the name may change its address


@pytest.mark.parametrize(
    "target",
    ["b.test:443", "a.test:22", "1.1.1.1:443", "[::1]:443", "169.254.169.254:80", "localhost:80",
     "127.0.0.1:{port}", "xa.test:443", "a.test.evil.com:443"],
)  # fmt: skip
async def test_what_is_not_in_the_list_is_refused_and_not_resolved(target: str) -> None:
    async with (
        Origin().run() as origin,
        proxying("a.test", f"c.test:{origin.port}=127.0.0.1") as proxy,
    ):
        target = target.format(port=origin.port)
        async with proxy.refusals() as following:
            answer = await proxy.talk(f"CONNECT {target} HTTP/1.1\r\n{USER}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert f"does not allow {target}".encode() in answer
            assert b"add '" in answer
            assert b"' to allow_hosts" in answer
            refusal = await following()
            assert (refusal.user, refusal.message) == (
                "agent",
                f"the sandbox does not allow {target}" + refusal.message.partition(target)[2],
            )
            assert refusal.message.encode() in answer
        assert proxy.resolved == []
        assert origin.received == []


async def test_a_client_that_does_not_name_its_user_is_asked_for_it_when_it_is_refused() -> None:
    async with proxying("a.test") as proxy, proxy.refusals() as following:
        answer = await proxy.talk(b"CONNECT b.test:443 HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 407 ")
        assert b'\r\nproxy-authenticate: Basic realm="sandbox-agent"\r\n' in answer
        assert b"does not allow b.test:443" in answer
        assert (await following()).user == ""


async def test_a_host_with_another_port_is_refused_with_the_ports_that_are_allowed() -> None:
    async with proxying("a.test", "a.test:22") as proxy:
        answer = await proxy.talk(b"CONNECT a.test:25 HTTP/1.1\r\n\r\n")
        assert b"only its ports 22, 80, 443 are in the list" in answer
        assert b"add 'a.test:25'" in answer


async def test_a_name_without_an_address_is_an_error_and_no_refusal() -> None:
    async with proxying("a.test") as proxy:
        answer = await proxy.talk(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"the name a.test cannot be resolved" in answer


async def test_a_host_that_does_not_listen_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with proxying(f"127.0.0.1:{port}") as proxy:
        answer = await proxy.get(f"http://127.0.0.1:{port}/")
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"cannot be reached" in answer


async def test_a_tls_hello_with_another_name_is_refused() -> None:
    async with Origin().run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1", "b.test") as proxy:
        async with proxy.refusals() as following, proxy.client() as client:
            await client.connect(f"a.test:{origin.port}")
            await client.send(hello("fronted.test"))
            assert await client.rest() == UNRECOGNIZED_NAME
            refusal = await following()
            assert (refusal.host, refusal.port) == ("fronted.test", origin.port)
            assert "asks for it in its TLS handshake" in refusal.message
        await origin.ended[0].wait()
        assert origin.received == [b""]
        async with proxy.client() as client:  # allowed, but on another port
            await client.connect(f"a.test:{origin.port}")
            await client.send(hello("b.test"))
            assert await client.rest() == UNRECOGNIZED_NAME


@pytest.mark.parametrize("name", [None, "A.test", "also.test"])
async def test_a_tls_hello_without_a_name_or_with_an_allowed_one_is_passed_on(name: str | None) -> None:
    async with Origin().run() as origin:
        hosts = [f"a.test:{origin.port}=127.0.0.1", f"also.test:{origin.port}=127.0.0.1"]
        async with proxying(*hosts) as proxy, proxy.client() as client:
            await client.connect(f"a.test:{origin.port}")
            await client.send(hello(name))
            assert await client.reader.readexactly(len(OK)) == OK


async def test_what_begins_like_tls_and_is_not_is_refused() -> None:
    async with Origin().run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        for data in (b"\x16\x02garbage-garbage", b"\x16\3\1\0\5\2\0\0\1\0"):
            async with proxy.client() as client:
                await client.connect(f"a.test:{origin.port}")
                await client.send(data)
                assert b"is not valid TLS" in await client.rest()


@pytest.mark.parametrize(
    "pieces",
    [
        [b"G", b"ET / HTTP/1.1\r\nHost: fronted.test\r\n\r\n"],
        [b"GET ", b"/", b" ", b"HTT", b"P/1.1\r\nHost: fronted.test\r\n\r\n"],
        [b"\r\n", b"GET / HTTP/1.1\r\nHost: fronted.test\r\n\r\n"],
        [b"M-X\t/\tHTTP/1.1\r\nHost: fronted.test\r\n\r\n"],
        [b"A" * 70_000],
    ],
)
async def test_a_request_in_pieces_is_not_taken_for_another_protocol(pieces: list[bytes]) -> None:
    async with (
        Origin().run() as origin,
        proxying(f"a.test:{origin.port}=127.0.0.1") as proxy,
        proxy.client() as client,
    ):
        await client.connect(f"a.test:{origin.port}")
        for piece in pieces:
            await client.send(piece)
            await asyncio.sleep(0)
        assert (await client.rest()).startswith(b"HTTP/1.1 4")
        await origin.ended[0].wait()
        assert origin.received == [b""]


@pytest.mark.parametrize(
    "first", [b"SSH-2.0-x y\r\n", b"EHLO me\r\n", b"*1\r\n", b"AMQP\0\0\x09\x01", b"\0\0\0\x08"]
)
async def test_other_protocols_are_passed_on_at_once_on_a_port_of_the_list(first: bytes) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(first)))
        writer.write_eof()
        await reader.read()

    async with (
        Origin(echo).run() as origin,
        proxying(f"a.test:{origin.port}=127.0.0.1") as proxy,
        proxy.client() as client,
    ):
        await client.connect(f"a.test:{origin.port}")
        await client.send(first)
        assert await client.rest() == first


async def test_other_protocols_are_for_ports_that_the_list_names(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Origin().run() as origin:
        monkeypatch.setattr(allow_list, "DEFAULT_PORTS", (origin.port,))
        async with proxying("a.test=127.0.0.1") as proxy, proxy.client() as client:
            await client.connect(f"a.test:{origin.port}")
            await client.send(b"SSH-2.0-x\r\n\r\n")
            assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
            await origin.ended[0].wait()
            assert origin.received == [b""]


async def test_a_request_in_a_tunnel_to_another_host_is_refused() -> None:
    async with Origin().run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        async with proxy.refusals() as following, proxy.client() as client:
            await client.connect(f"a.test:{origin.port}")
            await client.send(b"\r\n GET / HTTP/1.1\r\nHost: fronted.test\r\n\r\n")
            assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
            async with proxy.client() as second:
                await second.connect(f"a.test:{origin.port}")
                await second.send(b"GET / HTTP/1.1\r\nHost: fronted.test\r\n\r\n")
                assert (await second.rest()).startswith(b"HTTP/1.1 403 ")
            assert (await following()).host == "fronted.test"
        for ended in origin.ended:
            await ended.wait()
        assert origin.received == [b"", b""]


@pytest.mark.parametrize("tunnel", [True, False])
async def test_a_second_request_on_the_same_connection_is_not_sent(*, tunnel: bool) -> None:
    async with Origin(closes=False).run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        authority = f"a.test:{origin.port}"
        start = "" if tunnel else f"http://{authority}"
        one = f"POST {start}/1 HTTP/1.1\r\nHost: {authority}\r\nContent-Length: 2\r\n\r\nhi"
        two = f"GET {start.replace('a.test', 'b.test')}/2 HTTP/1.1\r\nHost: b.test\r\n\r\n"
        async with proxy.client() as client:
            if tunnel:
                await client.connect(authority)
            await client.send((one + two).encode())
            assert await client.reader.readexactly(len(OK)) == OK
            client.writer.write_eof()
            await origin.ended[0].wait()
        (received,) = origin.received
        assert received.startswith(b"POST /1 ")
        assert received.endswith(b"\r\n\r\nhi")


async def test_a_request_with_two_sizes_reaches_no_server() -> None:
    async with Origin().run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        start = f"POST http://a.test:{origin.port}/ HTTP/1.1\r\n".encode()
        sizes = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await proxy.talk(start + sizes + b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"ambiguous" in answer
        assert origin.received == []


@pytest.mark.parametrize("switches", [True, False])
async def test_a_websocket_is_passed_on_once_the_server_has_switched(*, switches: bool) -> None:
    got = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" if switches else OK)
        if switches:
            got.extend(await reader.read(100))
        writer.write_eof()
        got.extend(await reader.read())

    async with Origin(answer).run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1") as proxy:
        start = (
            f"GET http://a.test:{origin.port}/ HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await proxy.talk(start.encode() + b"GET /smuggled HTTP/1.1\r\n\r\n")
        assert b"upgrade: websocket\r\n" in got
        assert (b"smuggled" in got) is switches


async def test_a_head_that_is_too_large_or_too_slow_is_refused() -> None:
    async with proxying("a.test", bounds=Bounds(head_seconds=0.05)) as proxy:
        answer = await proxy.talk(b"GET http://a.test/ HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert (await proxy.talk(b"GET http://a.test/")).startswith(b"HTTP/1.1 408 ")
        assert (await proxy.talk(b"")).startswith(b"HTTP/1.1 408 ")


async def test_a_hello_that_never_ends_is_refused() -> None:
    bounds = Bounds(head_seconds=0.05)
    async with Origin().run() as origin, proxying(f"a.test:{origin.port}=127.0.0.1", bounds=bounds) as proxy:
        async with proxy.client() as client:
            await client.connect(f"a.test:{origin.port}")
            await client.send(hello("a.test")[:50])
            assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
        await origin.ended[0].wait()
        assert origin.received == [b""]


async def test_two_hundred_connections_at_once_are_served_and_more_than_the_bound_are_refused() -> None:
    bounds = Bounds(connections=200)
    async with (
        Origin(closes=False).run() as origin,
        proxying(f"a.test:{origin.port}=127.0.0.1", bounds=bounds) as proxy,
    ):
        async with asyncio.TaskGroup() as tasks:
            everyone = asyncio.Barrier(201)
            url = f"http://a.test:{origin.port}/"

            async def one() -> bytes:
                async with proxy.client() as client:
                    await client.send(f"POST {url} HTTP/1.1\r\nContent-Length: 2\r\n\r\n".encode())
                    answer = await client.reader.readexactly(len(OK))
                    await everyone.wait()
                    await everyone.wait()
                    return answer

            clients = [tasks.create_task(one()) for _ in range(200)]
            await everyone.wait()
            assert (await proxy.get(url)).startswith(b"HTTP/1.1 503 ")
            await everyone.wait()
        assert {client.result() for client in clients} == {OK}


async def test_a_client_that_does_not_read_holds_the_server_up() -> None:
    size = 64 * 1024 * 1024
    written = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(64):
            writer.write(bytes(size // 64))
            await writer.drain()
        written.set()

    async with (
        Origin(flood).run() as origin,
        proxying(f"a.test:{origin.port}=127.0.0.1") as proxy,
        proxy.client() as client,
    ):
        await client.send(f"GET http://a.test:{origin.port}/ HTTP/1.1\r\n\r\n".encode())
        got = len(await client.reader.readexactly(1024 * 1024))
        assert not written.is_set()
        while data := await client.reader.read(1024 * 1024):
            got += len(data)
        assert got == size


async def test_a_refused_client_that_goes_on_sending_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LINGER_SECONDS", 0.01)
    async with proxying() as proxy, proxy.client() as client:
        await client.send(f"CONNECT b.test:443 HTTP/1.1\r\n{USER}\r\n\r\n".encode())
        assert (await client.head()).startswith(b"HTTP/1.1 403 ")
        with contextlib.suppress(ConnectionError), anyio.fail_after(20):
            while True:
                await client.send(bytes(65_536))


async def test_a_connection_without_traffic_is_closed() -> None:
    bounds = Bounds(idle_seconds=0.05)
    async with (
        Origin().run() as origin,
        proxying(f"a.test:{origin.port}=127.0.0.1", bounds=bounds) as proxy,
        proxy.client() as client,
    ):
        await client.connect(f"a.test:{origin.port}")
        assert await client.rest() == b""


async def test_a_request_to_the_proxy_itself_is_explained() -> None:
    async with proxying() as proxy:
        assert b"this is a proxy" in await proxy.talk(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_there_are_not_more_subscribers_than_the_bound() -> None:
    async with proxying() as proxy, asyncio.TaskGroup():
        clients = [proxy.client() for _ in range(17)]
        answers: list[bytes] = []
        opened: list[Any] = []
        for each in clients:
            client = await each.__aenter__()
            opened.append(client)
            await client.send(b"GET /refusals HTTP/1.1\r\n\r\n")
            answers.append(await client.head())
        assert [b" 200 " in answer for answer in answers] == [True] * 16 + [False]
        for each in clients:
            await each.__aexit__(None, None, None)


async def test_the_log_names_refused_hosts_once_and_has_no_credentials(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with proxying("a.test") as proxy:
        for _ in range(3):
            await proxy.get("http://b.test/?key=secret", USER, "Authorization: Bearer secret")
    assert caplog.text.count("b.test") == 2  # the host, and what to add
    assert "secret" not in caplog.text
    assert "YWdlbn" not in caplog.text


async def test_names_are_reached_through_the_proxy_of_this_machine() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        if head.startswith(b"CONNECT"):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nserver first\n")
            tunneled.append(await reader.read(1_000))
        else:
            writer.write(OK)
        writer.write_eof()

    heads: list[bytes] = []
    tunneled: list[bytes] = []
    async with Origin(answer).run() as corporate:
        upstream = Upstream("127.0.0.1", corporate.port, authorization="Basic eDp5")
        upstreams = {"http": upstream, "https": upstream}
        names = {"inside.test": ["10.0.0.1"]}
        async with proxying("a.test", "inside.test", names=names, upstreams=upstreams) as proxy:
            assert await proxy.get("http://a.test/x", USER) == OK
            async with proxy.client() as client:
                await client.connect("a.test:443")
                assert await client.reader.readline() == b"server first\n"
                await client.send(hello("a.test"))
                await client.rest()
            assert (await proxy.get("http://inside.test/", USER)).startswith(b"HTTP/1.1 403 ")
    assert heads == [
        (
            b"GET http://a.test/x HTTP/1.1\r\nhost: a.test\r\nproxy-authorization: Basic eDp5\r\n"
            b"connection: close\r\n\r\n"
        ),
        b"CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\nproxy-authorization: Basic eDp5\r\n\r\n",
    ]
    assert [each[:1] for each in tunneled] == [b"\x16"]


async def test_the_refusal_of_the_proxy_of_this_machine_is_an_error() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    async with (
        Origin(answer).run() as corporate,
        proxying("a.test", upstreams={"https": Upstream("127.0.0.1", corporate.port)}) as proxy,
    ):
        answered = await proxy.talk(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 502 ")
        assert b"answered 407" in answered


def test_the_proxies_of_this_machine_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert read_upstreams() == {}
    monkeypatch.setenv("HTTPS_PROXY", "http://us%65r:p%40ss@proxy.test:3128")
    monkeypatch.setenv("HTTP_PROXY", "https://proxy.test")
    assert read_upstreams() == {
        "https": Upstream("proxy.test", 3128, authorization="Basic dXNlcjpwQHNz"),
        "http": Upstream("proxy.test", 443, is_tls=True),
    }
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.test:1080")
    with pytest.raises(InvalidRequestError, match="HTTPS_PROXY does not name an http"):
        read_upstreams()
