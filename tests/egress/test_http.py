"""Which requests are read, and how they are written to the server."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_agent.egress.http import ChunkedBody, RequestError, read_request


def head(start: str, *headers: str) -> bytes:
    return "\r\n".join([start, *headers, "", ""]).encode("latin-1")


def test_a_request_is_forwarded_with_the_host_of_its_url() -> None:
    request = read_request(
        head(
            "POST http://API.example.com/v1?q=1 HTTP/1.1",
            "Host: other.com",
            "Connection: close, X-Hop",
            "X-Hop: 1",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic YWdlbnQ6eA==",
            "Upgrade: h2c",
            "Content-Length: 2",
            "X-Kept: yes",
        )
    )
    assert (request.target, request.user, request.length) == (("api.example.com", 80), "agent", 2)
    assert request.forwarded() == head(
        "POST /v1?q=1 HTTP/1.1",
        "host: api.example.com",
        "x-kept: yes",
        "content-length: 2",
        "connection: close",
    )
    assert request.forwarded(absolute=True, authorization="Basic eA==").startswith(
        b"POST http://api.example.com/v1?q=1 HTTP/1.1\r\nhost: api.example.com\r\n"
    )
    assert b"proxy-authorization: Basic eA==\r\n" in request.forwarded(authorization="Basic eA==")


@pytest.mark.parametrize(
    ("start", "target", "path"),
    [
        ("CONNECT a.com:443 HTTP/1.1", ("a.com", 443), b""),
        ("GET http://a.com HTTP/1.0", ("a.com", 80), b"/"),
        ("GET http://a.com:8080?x HTTP/1.1", ("a.com", 8080), b"/?x"),
        ("GET HTTP://A.com./x HTTP/1.1", ("a.com", 80), b"/x"),
        ("GET /refusals HTTP/1.1", None, b"/refusals"),
    ],
)
def test_the_target_is_read(start: str, target: object, path: bytes) -> None:
    request = read_request(head(start))
    assert request.target == target
    assert request.path == path or target == ("a.com", 443)


@pytest.mark.parametrize(
    "start",
    [
        "GET https://a.com/ HTTP/1.1",
        "GET http://user@a.com/ HTTP/1.1",
        "GET http://a.com@b.com/ HTTP/1.1",
        "GET http://a.com\\@b.com/ HTTP/1.1",
        "GET http://a.com#b HTTP/1.1",
        "GET http:///x HTTP/1.1",
        "GET http://0x7f.1/ HTTP/1.1",
        "GET  http://a.com/ HTTP/1.1",
        "GET http://a.com/ HTTP/1.1 ",
        "GET http://a.com/ b HTTP/1.1",
        "GET http://a.com/ HTTP/2.0",
        "GET http://a.com/",
        "\r\nGET http://a.com/ HTTP/1.1",
        "G\0T http://a.com/ HTTP/1.1",
        "CONNECT a.com HTTP/1.1",
        "CONNECT a.com:0 HTTP/1.1",
        "CONNECT http://a.com:443 HTTP/1.1",
        "CONNECT [::1%lo]:443 HTTP/1.1",
        "PRI * HTTP/2.0",
        "OPTIONS * HTTP/1.1",
    ],
)
def test_an_invalid_first_line_is_refused(start: str) -> None:
    with pytest.raises(RequestError):
        read_request(head(start))


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 1", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding\t: chunked",),
        (" Transfer-Encoding: chunked",),
        ("X: 1", " folded"),
        ("X: 1\nTransfer-Encoding: chunked",),
        ("X: 1\rTransfer-Encoding: chunked",),
        ("X: \0",),
        ("Content-Length: 1", "Content-Length: 1"),
        ("Content-Length: 1, 1",),
        ("Content-Length: +1",),
        ("Content-Length: 0x1",),
        ("Content-Length: -1",),
        ("Content-Length:",),
        ("Content-Length: 1\x0b",),
        (": 1",),
        ("no colon",),
    ],
)
def test_an_ambiguous_or_damaged_head_is_refused(headers: tuple[str, ...]) -> None:
    with pytest.raises(RequestError):
        read_request(head("POST http://a.com/ HTTP/1.1", *headers))


def test_a_chunked_request_of_http_1_0_is_refused() -> None:
    with pytest.raises(RequestError):
        read_request(head("POST http://a.com/ HTTP/1.0", "Transfer-Encoding: chunked"))


def test_a_request_in_a_tunnel_is_read_by_its_host() -> None:
    request = read_request(head("GET /x HTTP/1.1", "Host: B.com"), tunnel=("a.com", 8080))
    assert request.target == ("b.com", 8080)
    for headers in ([], ["Host: a", "Host: b"], ["Host: a b"], ["Host: "]):
        with pytest.raises(RequestError):
            read_request(head("GET /x HTTP/1.1", *headers), tunnel=("a.com", 8080))
    with pytest.raises(RequestError, match="no proxy in a tunnel"):
        read_request(head("CONNECT b.com:443 HTTP/1.1"), tunnel=("a.com", 8080))
    with pytest.raises(RequestError, match="needs a path"):
        read_request(head("GET http://b.com/ HTTP/1.1", "Host: a.com"), tunnel=("a.com", 8080))


def decoded(*parts: bytes) -> bytes:
    body = ChunkedBody()
    sent = b"".join(piece for part in parts for piece in body.feed(part))
    assert body.is_over
    return sent


def test_a_chunked_body_ends_where_it_says_and_loses_extensions_and_trailers() -> None:
    body = b"5;x=y\r\nhello\r\n0A\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\nGET / HTTP/1.1"
    expected = b"5\r\nhello\r\na\r\n0123456789\r\n0\r\n\r\n"
    assert decoded(body) == expected
    assert decoded(*(body[at : at + 1] for at in range(len(body)))) == expected


@pytest.mark.parametrize(
    "body",
    [b"5\nhello\r\n", b"5\r\nhello0\r\n\r\n", b"-1\r\n", b"0x5\r\nhello", b" 5\r\n", b"\r\n", b"5;\n\r\n",
     b"1" * 16 + b"\r\n", b"5;" + b"x" * 300, b"0\r\nno colon\r\n", b"0\r\n X: 1\r\n"],
)  # fmt: skip
def test_a_damaged_chunk_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        list(ChunkedBody().feed(body))


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=50))
def test_bytes_are_accepted_or_refused_with_the_documented_error(noise: bytes, more: bytes) -> None:
    for data in (noise, b"GET http://a.com/" + noise + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + noise):
        for tunnel in (None, ("a.com", 80)):
            with contextlib.suppress(RequestError):
                read_request(data, tunnel)
    body = ChunkedBody()
    with contextlib.suppress(RequestError):
        list(body.feed(noise))
        list(body.feed(more))
