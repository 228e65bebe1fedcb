"""The requests of a proxy's clients: read strictly, so that no server reads another request out of one."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

from sandbox_agent.egress.allow_list import Address, join_port, read_host, split_port

MAX_HEAD = 64 * 1024
# Longer lines of sizes have extensions, which nothing uses.
_MAX_SIZE_LINE = 256
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([01])")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?")
# For one connection (RFC 9110, 7.6.1), and those of proxies. Trailers are left out.
_HOP_BY_HOP = {
    *(b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"http2-settings"),
    *(b"proxy-authorization", b"proxy-authenticate"),
}
_URL = re.compile(r"http://([^/?#]*)([^#]*)", re.IGNORECASE)


class RequestError(Exception):
    """A request that is not forwarded.

    Attributes:
        answer: What the client gets.
    """

    def __init__(
        self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, answer: bytes | None = None
    ) -> None:
        super().__init__(message)
        self.answer: bytes = error_response(status, message) if answer is None else answer


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request.

    Attributes:
        method: The method.
        target: The host and the port that it names; None for a request to this server itself.
        path: The path with the query, as the server gets it.
        headers: The names in lower case and the values, in their order.
        user: The user of Proxy-Authorization, or an empty string.
        length: The size of the body, or None if it is chunked.
        is_websocket: The connection becomes a WebSocket.
    """

    method: str
    target: tuple[str | Address, int] | None
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    user: str
    length: int | None
    is_websocket: bool

    def forwarded(self, *, absolute: bool = False, authorization: str | None = None) -> bytes:
        """Return the head for the server. It ends with this request, unless it is a WebSocket.

        Args:
            absolute: The server is a proxy.
            authorization: The credentials for that proxy.
        """
        assert self.target is not None
        host, port = self.target
        authority = join_port(host, port).removesuffix(":80").encode()
        where = b"http://" + authority + self.path if absolute else self.path
        lines = [b"%s %s HTTP/1.1" % (self.method.encode(), where), b"host: " + authority]
        named = {name.strip().lower() for value in self.values(b"connection") for name in value.split(b",")}
        dropped = (_HOP_BY_HOP | named | {b"host", b"content-length", b"transfer-encoding"}) - {b""}
        lines += [b"%s: %s" % header for header in self.headers if header[0] not in dropped]
        if self.length is None:
            lines.append(b"transfer-encoding: chunked")
        elif self.length or self.values(b"content-length"):
            lines.append(b"content-length: %d" % self.length)
        if authorization is not None:
            lines.append(b"proxy-authorization: " + authorization.encode())
        if self.is_websocket:
            lines += [b"connection: upgrade", b"upgrade: websocket"]
        else:
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a header."""
        return [value for found, value in self.headers if found == name]


def read_request(head: bytes, tunnel: tuple[str | Address, int] | None = None) -> Request:
    """Read the head of a request.

    Args:
        head: The head with the empty line at its end.
        tunnel: Where the tunnel goes in which the request was sent; None for a request to the proxy.

    Raises:
        RequestError: The request is invalid, ambiguous, or not one for a proxy.
    """
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    start = _REQUEST.fullmatch(lines[0])
    if start is None:
        raise RequestError("the first line is not 'METHOD TARGET HTTP/1.1'")
    method, raw_target, minor = start.groups()
    headers = tuple(map(_read_header, lines[1:]))
    request = Request(method.decode(), None, raw_target, headers, "", 0, is_websocket=False)
    if request.method == "CONNECT":
        if tunnel is not None:
            raise RequestError("there is no proxy in a tunnel")
        target, path = _read_authority(raw_target.decode(), None), b""
    elif tunnel is not None:
        target, path = _read_origin(request, tunnel[1])
    else:
        target, path = _read_absolute(raw_target)
    user = _read_user(request.values(b"proxy-authorization"))
    length = _read_length(request, has_chunks=minor == b"1")
    is_websocket = _is_websocket(request) and length == 0
    return Request(request.method, target, path, headers, user, length, is_websocket)


def _read_header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise RequestError("a header is not 'Name: value' on one line")
    return name.lower(), value


def _read_absolute(raw: bytes) -> tuple[tuple[str | Address, int] | None, bytes]:
    target = raw.decode()
    if target.startswith("/"):
        return None, raw
    url = _URL.fullmatch(target)
    if url is None:
        raise RequestError("the target is not an http:// URL: for others, use CONNECT host:port")
    authority, path = url.groups()
    return _read_authority(authority, 80), (path if path.startswith("/") else f"/{path}").encode()


def _read_origin(request: Request, port: int) -> tuple[tuple[str | Address, int], bytes]:
    hosts = request.values(b"host")
    if len(hosts) != 1 or not request.path.startswith(b"/"):
        raise RequestError("a request in a tunnel needs a path and one Host")
    host, found_port = _read_authority(hosts[0].decode("latin-1"), 80)
    return (host, port if found_port == 80 else found_port), request.path


def _read_authority(text: str, default: int | None) -> tuple[str | Address, int]:
    try:
        host_text, port = split_port(text)
    except ValueError as error:
        raise RequestError(str(error)) from None
    host, port = read_host(host_text), port or default
    if host is None or port is None:
        raise RequestError("the target is not 'host:port'")
    return host, port


def _read_user(values: list[bytes]) -> str:
    for value in values:
        scheme, _, encoded = value.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                return base64.b64decode(encoded.strip()).partition(b":")[0].decode()
            except (binascii.Error, UnicodeDecodeError):
                break
    return ""


def _read_length(request: Request, *, has_chunks: bool) -> int | None:
    encodings, lengths = request.values(b"transfer-encoding"), request.values(b"content-length")
    if encodings:
        if lengths or not has_chunks or len(encodings) > 1 or encodings[0].lower() != b"chunked":
            raise RequestError(
                "the size of the body is ambiguous: use either one Content-Length or 'Transfer-Encoding: "
                "chunked'"
            )
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
        raise RequestError("Content-Length is not one number")
    return int(lengths[0])


def _is_websocket(request: Request) -> bool:
    upgrades = request.values(b"upgrade")
    return request.method == "GET" and len(upgrades) == 1 and upgrades[0].lower() == b"websocket"


class ChunkedBody:
    """Passes on a chunked body, without extensions and trailers, and finds its end."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._state = "size"
        self.is_over: bool = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what to send for these bytes of the client.

        Raises:
            RequestError: The body is invalid.
        """
        self._rest += data
        while self._rest and not self.is_over:
            if self._state == "data":
                part, self._rest = self._rest[: self._left], self._rest[self._left :]
                self._left -= len(part)
                yield part
                if not self._left:
                    self._state = "end"
            elif self._state == "end":
                if len(self._rest) < 2:
                    return
                if not self._rest.startswith(b"\r\n"):
                    raise RequestError("a chunk does not end where its size says")
                self._rest = self._rest[2:]
                self._state = "size"
                yield b"\r\n"
            else:
                line, end, rest = self._rest.partition(b"\r\n")
                if len(line) > _MAX_SIZE_LINE:
                    raise RequestError("a line of a chunked body is too long")
                if not end:
                    return
                self._rest = rest
                yield from self._read_line(line)

    def _read_line(self, line: bytes) -> Iterator[bytes]:
        if self._state == "trailer":
            if not line:
                self.is_over = True
                yield b"\r\n"
            else:
                _read_header(line)
            return
        found = _SIZE.fullmatch(line)
        if found is None:
            raise RequestError("the size of a chunk is not a number")
        self._left = int(found[1], 16)
        self._state = "data" if self._left else "trailer"
        yield b"%x\r\n" % self._left


def error_response(status: HTTPStatus, message: str, *headers: str) -> bytes:
    """Return a response with a text."""
    body = f"sandbox-agent: {message}\n".encode()
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "content-type: text/plain; charset=utf-8"]
    lines += [f"content-length: {len(body)}", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
