"""The name in a TLS hello, as OpenSSL sends it, and hellos that are cut, damaged or hostile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_agent.egress.tls import MAX_HELLO, InvalidHelloError, read_server_names
from tests.egress.kit import hello


def records(message: bytes, size: int) -> bytes:
    """Return a handshake message in records of this size."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in parts)


def with_extensions(extensions: bytes) -> bytes:
    body = (
        b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + len(extensions).to_bytes(2) + extensions
    )
    return records(b"\1" + len(body).to_bytes(3) + body, 16_000)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(bytes([kind]) + len(name).to_bytes(2) + name for name in names)
    content = len(entries).to_bytes(2) + entries
    return b"\0\0" + len(content).to_bytes(2) + content


def test_the_name_of_a_hello_is_read() -> None:
    assert read_server_names(hello("api.anthropic.com")) == ["api.anthropic.com"]
    assert read_server_names(hello(None)) == []


def test_a_hello_in_pieces_is_read_when_it_is_whole() -> None:
    whole = hello("api.anthropic.com")
    for end in range(len(whole)):
        assert read_server_names(whole[:end]) is None
    assert read_server_names(records(whole[5:], 3)) == ["api.anthropic.com"]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\1\3\1" + bytes(40),  # of SSL 2
        b"\x16\3\1\0\0",
        b"\x16\3\1\0\4\2\0\0\0",
        records(b"\1\0\0\4" + bytes(4), 99),
        with_extensions(server_name(b"a.com") + server_name(b"b.com")),
        with_extensions(server_name(b"a.com", kind=1)),
        with_extensions(server_name()),
        with_extensions(b"\0\0\0\x09\0\5\0\0\x05a.com"),
        records(hello("a.com")[5:] + b"\0", 16_000),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidHelloError):
        read_server_names(data)


def test_a_hello_without_an_end_is_refused() -> None:
    endless = records(b"\1\xff\xff\xff" + bytes(2 * MAX_HELLO), 16_000)
    with pytest.raises(InvalidHelloError, match="too long"):
        read_server_names(endless)


def test_all_names_are_returned() -> None:
    assert read_server_names(with_extensions(server_name(b"a.com", b"b.com"))) == ["a.com", "b.com"]


HELLO = hello("example.com")


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_bytes_are_accepted_or_refused_with_the_documented_error(noise: bytes, at: int) -> None:
    whole = HELLO
    for data in (noise, b"\x16\3\1" + noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            names = read_server_names(data)
        except InvalidHelloError:
            continue
        assert names is None or all(isinstance(name, str) for name in names)
