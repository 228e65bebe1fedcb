"""The name in the first message of a TLS connection."""

from __future__ import annotations

# The first byte of a TLS connection: a record of the handshake.
HANDSHAKE = 0x16
# Hellos have some hundred bytes, and with post-quantum keys about 2 KB.
MAX_HELLO = 16 * 1024
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
# A fatal alert, unrecognized_name (RFC 6066).
UNRECOGNIZED_NAME = bytes((21, 3, 3, 0, 2, 2, 112))


class InvalidHelloError(ValueError):
    """The bytes are not the start of a TLS connection."""


class _Incomplete(Exception):  # noqa: N818 - not an error: more bytes are needed
    pass


def read_server_names(data: bytes) -> list[str] | None:
    """Return the server names of a ClientHello: one, or none if the client does not send it.

    Args:
        data: The first bytes of the connection.

    Returns:
        The names; None if more bytes are needed.

    Raises:
        InvalidHelloError: The bytes are not a ClientHello of TLS 1.0 to 1.3 (RFC 8446, RFC 6066).
    """
    try:
        return _names(_read_message(data))
    except _Incomplete:
        if len(data) > MAX_HELLO:
            raise InvalidHelloError("the hello is too long") from None
        return None


def _read_message(data: bytes) -> bytes:
    """Return the body of the ClientHello, which may be in several records."""
    message = b""
    rest = _Reader(data)
    while True:
        kind, major = rest.number(1), rest.number(1)
        if kind != HANDSHAKE or major != 3:
            raise InvalidHelloError("it is not a record of a TLS handshake")
        rest.number(1)
        length = rest.number(2)
        if length == 0:
            raise InvalidHelloError("a record is empty")
        message += rest.take(length)
        if message[0] != _CLIENT_HELLO:
            raise InvalidHelloError("the first message is not a ClientHello")
        if len(message) >= 4:
            size = int.from_bytes(message[1:4])
            if len(message) > 4 + size:
                raise InvalidHelloError("something follows the ClientHello")
            if len(message) == 4 + size:
                return message[4:]


def _names(body: bytes) -> list[str]:
    try:
        reader = _Reader(body)
        reader.take(2 + 32)  # version and random
        for width in (1, 2, 1):  # session id, cipher suites, compression methods
            reader.vector(width)
        if reader.is_empty:
            return []
        extensions = _Reader(reader.vector(2))
        if not reader.is_empty:
            raise InvalidHelloError("something follows the extensions")
        names: list[str] = []
        seen = False
        while not extensions.is_empty:
            kind, content = extensions.number(2), extensions.vector(2)
            if kind != _SERVER_NAME:
                continue
            if seen:
                raise InvalidHelloError("it has two lists of server names")
            seen = True
            names = _read_list(content)
        return names
    except _Incomplete:
        raise InvalidHelloError("a part of the ClientHello is longer than the whole") from None


def _read_list(content: bytes) -> list[str]:
    outer = _Reader(content)
    entries = _Reader(outer.vector(2))
    names: list[str] = []
    while not entries.is_empty:
        kind, name = entries.number(1), entries.vector(2)
        if kind != _HOST_NAME:
            raise InvalidHelloError("a server name has an unknown type")
        names.append(name.decode("ascii", "replace"))
    if not names or not outer.is_empty:
        raise InvalidHelloError("the list of server names is damaged")
    return names


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        if len(self._data) - self._at < count:
            raise _Incomplete
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width))

    def vector(self, width: int) -> bytes:
        return self.take(self.number(width))
