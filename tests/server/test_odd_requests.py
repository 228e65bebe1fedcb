"""HTTP requests that are legal and rare: ids of dots, HTTP/1.0, bodies sent before the answer is read."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator

import pytest

from tests.server.talk import envelope
from tests.support.servers import ServerProcess, our_server

LIMIT = 100_000
TOKEN = "s3cret-token"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """A server with a small limit and a token."""
    with our_server(tmp_path_factory.mktemp("odd"), "--max-body-bytes", str(LIMIT), token=TOKEN) as running:
        yield running


def request(line: str, body: bytes = b"", *headers: str, token: str = TOKEN) -> bytes:
    usual = ["Host: localhost", f"Authorization: Bearer {token}", "Content-Type: application/json"]
    head = [line, *usual, *headers]
    if not any(header.startswith("Transfer-Encoding") for header in headers):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def send(server: ServerProcess, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(data)
    return connection


def read_all(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the head and the body of a response that ends with its connection."""
    head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return head, body


def ask(server: ServerProcess, data: bytes) -> tuple[bytes, bytes]:
    with send(server, data) as connection:
        return read_all(connection)


def read_response(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the head and the body of a response that has a length, on a connection that stays."""
    with connection.makefile("rb") as reader:
        head = b"".join(iter(reader.readline, b"\r\n"))
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head, reader.read(length)


INITIALIZE = json.dumps(envelope("initialize", {"protocolVersion": 1}, 1)).encode()


@pytest.mark.parametrize("name", [".", "..", "%2e", "%2E%2e", ".%2e"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/acp/{}?agent=mock", INITIALIZE),
        ("GET", "/v1/acp/{}", b""),
        ("POST", "/v1/sessions/{}", b'{"agent":"mock"}'),
        ("GET", "/v1/sessions/{}", b""),
        ("POST", "/v1/sessions/s/permissions/{}/reply", b'{"reply":"once"}'),
    ],
)
def test_an_id_of_dots_is_refused(
    server: ServerProcess, name: str, method: str, path: str, body: bytes
) -> None:
    # A client that follows RFC 3986, section 5.2.4, removes such a segment, and so would reach another path.
    head, answer = ask(server, request(f"{method} {path.format(name)} HTTP/1.1", body, "Connection: close"))
    assert head.startswith(b"HTTP/1.1 400 ")
    problem = json.loads(answer)
    assert problem["type"] == "urn:sandbox-agent:error:invalid_request"
    assert "'.' or '..'" in problem["detail"]


@pytest.mark.parametrize("path", ["/v1/acp/", "/v1/sessions/", "/v1/sessions//messages", "/v1/agents/"])
def test_an_empty_id_is_no_endpoint(server: ServerProcess, path: str) -> None:
    head, answer = ask(server, request(f"POST {path} HTTP/1.1", b"{}", "Connection: close"))
    assert head.startswith(b"HTTP/1.1 404 ")
    assert json.loads(answer)["detail"].startswith("endpoint not found")


def test_an_http_1_0_client_is_answered(server: ServerProcess) -> None:
    head, body = ask(server, b"GET /v1/health HTTP/1.0\r\nAuthorization: Bearer s3cret-token\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head
    assert json.loads(body) == {"status": "ok"}
    for number in (1, 2):  # the second envelope is for a live agent
        line = "POST /v1/acp/old?agent=mock HTTP/1.0"
        head, body = ask(server, request(line, INITIALIZE.replace(b'"id": 1', b'"id": %d' % number)))
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body)["id"] == number


def test_a_stream_to_an_http_1_0_client_is_not_chunked(server: ServerProcess) -> None:
    ask(server, request("POST /v1/acp/stream?agent=mock HTTP/1.0", INITIALIZE))
    connection = send(server, request("GET /v1/acp/stream HTTP/1.0"))
    with connection, connection.makefile("rb") as reader:
        head = b"".join(iter(reader.readline, b"\r\n"))
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        assert reader.readline() == b": connected\n"
        assert b'"protocolVersion":1' in next(line for line in reader if line.startswith(b"data: "))


def test_an_export_for_an_http_1_0_client_is_whole_and_not_chunked(server: ServerProcess) -> None:
    ask(server, request("POST /v1/sessions/exported HTTP/1.0", b'{"agent":"mock"}'))
    head, body = ask(server, request("GET /v1/sessions/exported/export HTTP/1.0"))
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head
    assert json.loads(body.splitlines()[0])["type"] == "session.started"
    assert body.endswith(b"\n")


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/v1/acp/big?agent=mock", TOKEN, 413),
        ("/v1/sessions/big", TOKEN, 413),
        ("/v1/nothing", TOKEN, 404),
        ("/v1/sessions/big", "wrong", 401),
    ],
)
@pytest.mark.parametrize("size", [LIMIT + 1, 20_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_its_whole_body_first_reads_the_answer(
    server: ServerProcess, path: str, token: str, status: int, *, size: int, chunked: bool
) -> None:
    body, headers = b"x" * size, ()
    if chunked:
        body, headers = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body), ("Transfer-Encoding: chunked",)
    with send(server, request(f"POST {path} HTTP/1.1", body, *headers, token=token)) as connection:
        head, answer = read_response(connection)
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(answer)["status"] == status
        connection.sendall(request("GET /v1/health HTTP/1.1"))
        assert read_response(connection)[1] == b'{"status":"ok"}'


@pytest.mark.parametrize("folder", ["relative", "/nowhere/at/all", "~", "/etc/passwd"])
def test_a_folder_is_checked_by_the_sessions_and_not_by_acp(server: ServerProcess, folder: str) -> None:
    body = json.dumps({"agent": "mock", "directory": folder}).encode()
    head, answer = ask(server, request("POST /v1/sessions/folder HTTP/1.0", body))
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "directory must be an absolute path of a folder that exists" in json.loads(answer)["detail"]
    # The TypeScript client sends its own folder, which the server's machine may not have.
    ask(server, request("POST /v1/acp/folder?agent=mock HTTP/1.0", INITIALIZE))
    new = json.dumps(envelope("session/new", {"cwd": folder, "mcpServers": []}, folder)).encode()
    head, answer = ask(server, request("POST /v1/acp/folder HTTP/1.0", new))
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer)["result"]["sessionId"]
