"""The log names the request, connection and session of a line. Nothing that a client sends forges a line."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent import SandboxAgent, SandboxAgentError
from sandbox_agent.cli.logs import configure_logging
from sandbox_agent.errors import InvalidRequestError, error_from_problem
from sandbox_agent.server.log_context import current_fields, current_request_id, log_fields, request_id_of
from tests.server.talk import client_of, envelope, talk
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

TOKEN = "a-token-of-some-length"
MADE = re.compile(r"req_[0-9a-f]{16}")


def lines_of(server: ServerProcess) -> list[dict[str, Any]]:
    """Return the lines of a log in JSON; each of them is an object with the four members."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    return lines


@pytest.fixture
def own(tmp_path: Path) -> Generator[ServerProcess]:
    with our_server(tmp_path, "--log-format", "json", "--log-level", "debug", token=TOKEN) as running:
        yield running


async def test_a_request_is_followed_from_its_id_to_the_agent_and_the_recorder(own: ServerProcess) -> None:
    async with client_of(own) as client:
        headers = {"x-request-id": "operator/42"}
        created = await client.post("/v1/sessions/traced", json={"agent": "mock"}, headers=headers)
        assert created.headers["x-request-id"] == "operator/42"
        other = await client.post("/v1/sessions/other", json={"agent": "mock"})
        await client.delete("/v1/sessions/traced")
    mine = [line for line in lines_of(own) if line.get("request_id") == "operator/42"]
    assert all(line["session_id"] == "traced" for line in mine)
    [started] = [line for line in mine if "mock started" in line["message"]]
    assert started["server_id"]
    assert started["connection_id"]
    [stored] = [line for line in mine if "was created" in line["message"]]
    assert stored["message"] == "session traced of agent mock was created"
    assert any(line.get("request_id") == other.headers["x-request-id"] for line in lines_of(own))
    # The agent outlives the request: its end does not belong to it.
    [ended] = [
        line
        for line in lines_of(own)
        if "mock ended" in line["message"] and line["connection_id"] == started["connection_id"]
    ]
    assert "request_id" not in ended


async def test_a_session_of_a_connection_is_recorded_with_the_request_that_created_it(
    own: ServerProcess,
) -> None:
    async with talk(own, open_=False) as talking:
        first = {"x-request-id": "first", "content-type": "application/json"}
        second = {"x-request-id": "second", "content-type": "application/json"}
        begin = envelope("initialize", {"protocolVersion": 1}, 1)
        await talking.client.post(talking.path, params={"agent": "mock"}, json=begin, headers=first)
        new = envelope("session/new", {"cwd": "/tmp", "mcpServers": []}, 2)
        answer = await talking.client.post(talking.path, json=new, headers=second)
        native = answer.json()["result"]["sessionId"]
        await talking.client.get(f"/v1/sessions/{native}/events")
    assert own.stop() == 0
    lines = lines_of(own)
    [started] = [line for line in lines if "mock started" in line["message"]]
    [recorded] = [line for line in lines if "is recorded" in line["message"]]
    assert (started["request_id"], recorded["request_id"]) == ("first", "second")
    assert recorded["session_id"] == native
    assert recorded["connection_id"] == started["connection_id"]
    assert recorded["server_id"] == started["server_id"]


async def test_each_message_of_a_queue_is_logged_under_its_own_request(own: ServerProcess) -> None:
    async with client_of(own) as client:
        path = "/v1/sessions/queued"
        await client.post(path, json={"agent": "mock"})
        for number in (1, 2):
            await client.post(
                f"{path}/messages/stream", json={"message": "die 3"}, headers={"x-request-id": f"m-{number}"}
            )
    warned = [line for line in lines_of(own) if line["message"].startswith("agent mock started")]
    assert [line["request_id"] for line in warned][1:] == ["m-2"]
    assert warned[1]["session_id"] == "queued"


@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a\tb", "x" * 129, "ü", '"quoted"', "a,b", "req\x00", "<script>"],
)
async def test_an_id_that_is_not_well_formed_is_replaced(own: ServerProcess, value: str) -> None:
    with socket.create_connection(("127.0.0.1", own.port)) as raw:
        head = f"GET /v1/nothing HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
        raw.sendall(f"{head}connection: close\r\nx-request-id: {value}\r\n\r\n".encode())
        answer = b""
        while chunk := raw.recv(10_000):
            answer += chunk
    if "\x00" in value:  # not HTTP
        assert answer.startswith(b"HTTP/1.1 400")
        return
    header, _, body = answer.partition(b"\r\n\r\n")
    [found] = re.findall(rb"(?i)x-request-id: ([^\r]*)", header)
    assert MADE.fullmatch(found.decode())
    assert json.loads(body)["requestId"] == found.decode()


@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.parametrize("origin", ["", "http://a.example"])
@pytest.mark.parametrize("path", ["/v1/agents/none", "/v1/nothing", "/v1/acp/none"])
async def test_the_id_is_in_the_header_and_the_problem(
    own: ServerProcess, with_token: bool, origin: str, path: str
) -> None:
    async with client_of(own, **({} if with_token else {"authorization": "Bearer x"})) as client:
        headers = {"x-request-id": "a-1", **({"origin": origin} if origin else {})}
        answer = await client.post(path, json=envelope("x", {}, 1), headers=headers)
        again = await client.post(path, json=envelope("x", {}, 1))
    assert answer.status_code in ((400, 404, 405) if with_token else (401,))
    assert answer.headers.get_list("x-request-id") == ["a-1"]
    assert answer.json()["requestId"] == "a-1"
    assert again.json()["requestId"] == again.headers["x-request-id"] != "a-1"


async def test_the_fast_path_and_streams_have_an_id_too(own: ServerProcess) -> None:
    async with talk(own) as talking:
        fast = await talking.client.post(talking.path, json=envelope("session/list", {}, 7))
        assert MADE.fullmatch(fast.headers["x-request-id"])
        headers = {"x-request-id": "mine"}
        plain = await talking.client.post(talking.path, json=envelope("session/list", {}, 8), headers=headers)
        assert plain.headers["x-request-id"] == "mine"
        async with talking.client.stream("GET", talking.path, headers=headers) as stream:
            assert stream.headers["x-request-id"] == "mine"


async def test_an_error_of_the_fast_path_has_the_id_of_its_response(own: ServerProcess) -> None:
    async with talk(own) as talking:
        body = envelope("session/prompt", talking.prompting("die 3"), 7)
        answer = await talking.client.post(talking.path, json=body)
    assert answer.status_code >= 500
    assert answer.json()["requestId"] == answer.headers["x-request-id"]


async def test_uvicorn_logs_in_the_same_format(own: ServerProcess) -> None:
    assert any(line["logger"].startswith("uvicorn") for line in lines_of(own))


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_nothing_that_a_client_sends_begins_a_line_of_the_log(tmp_path: Path, log_format: str) -> None:
    forged = "2026-01-01 00:00:00,000 ERROR root: forged"
    script = f"import sys\nsys.stdin.readline()\nsys.exit('x\\n{forged}')\n"
    with our_server(tmp_path, "--log-level", "debug", "--log-format", log_format) as server:
        put_launcher(tmp_path / "data", "dying", ["python3", "-c", script])
        async with client_of(server) as client:
            for name in ("a%0A", "a%0D%0A", "a%E2%80%A8", "a%1B[2J", "a%C2%85"):
                await client.post(f"/v1/sessions/{name}{forged}", json={"agent": "mock"})
                await client.post(f"/v1/acp/{name}{forged}?agent=mock", json=envelope("x", {}, 1))
            await client.post("/v1/acp/s?agent=dying", json=envelope("x", {}, 1))
        assert server.stop() == 0
        text = server.log.read_text()
    assert not any(line.startswith("2026-01-01 00:00:00") for line in re.split(r"[\n\r\x85\u2028]", text))
    assert "\x1b" not in text
    if log_format == "json":
        lines_of(server)


@pytest.fixture
def root() -> Generator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_ids_and_tracebacks_are_escaped_bounded_and_redacted(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure_logging("info", log_format, secrets=[TOKEN], fields=current_fields)
    with log_fields(server_id=f"x\n{TOKEN}", session_id="y" * 250 + TOKEN + "z" * 10_000, odd="a b=c"):
        try:
            raise ValueError(f"a\nERROR root: forged {TOKEN}\r\x85more")
        except ValueError:
            logging.getLogger("test").exception("a\nb\x1b[2J ?token=secret-of-someone")
    logged = capsys.readouterr().err
    assert TOKEN not in logged
    assert TOKEN[:4] not in logged
    assert "secret-of-someone" not in logged
    assert len(logged) < 3000
    first, *rest = logged.splitlines()
    assert "\x1b" not in logged
    if log_format == "json":
        assert not rest
        line = json.loads(first)
        assert line["server_id"] == "x\n[redacted]"
        assert "forged" in line["exception"]
    else:
        assert r"a\nb\x1b[2J" in first
        assert r'server_id="x\n[redacted]"' in first
        assert 'odd="a b=c"' in first
        assert all(line.startswith("    ") for line in rest)
        assert any("forged" in line for line in rest)


async def test_fields_belong_to_the_task_that_set_them() -> None:
    both = asyncio.Barrier(2)

    async def handle(name: str) -> str | None:
        with log_fields(request_id=name):
            await both.wait()
            return current_request_id()

    assert await asyncio.gather(handle("a"), handle("b")) == ["a", "b"]
    assert current_request_id() is None


def test_only_the_first_header_counts() -> None:
    assert request_id_of([(b"host", b"x"), (b"x-request-id", b"a"), (b"x-request-id", b"b")]) == "a"
    assert MADE.fullmatch(request_id_of([(b"x-request-id", b"\n"), (b"x-request-id", b"b")]))
    assert request_id_of([]) != request_id_of([])


def test_an_error_of_the_sdk_shows_the_request_and_keeps_its_detail() -> None:
    problem = InvalidRequestError("a detail", agent="mock").to_problem()
    error = error_from_problem(400, {**problem, "requestId": "req_1"})
    assert isinstance(error, InvalidRequestError)
    assert str(error) == "a detail (request req_1)"
    assert (error.detail, error.request_id, error.extensions) == ("a detail", "req_1", {"agent": "mock"})
    plain = error_from_problem(502, None)
    assert plain.request_id is None
    assert "(request" not in str(plain)


async def test_the_sdk_shows_the_request_that_the_log_has(own: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=own.url, token=TOKEN) as sdk:
        with pytest.raises(SandboxAgentError) as raised:
            await sdk.get_agent("no-such-agent")
    assert raised.value.request_id is not None
    assert raised.value.request_id in str(raised.value)
