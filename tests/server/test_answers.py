"""Statuses and problem bodies, as the contract and the published server have them."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.server.talk import client_of, envelope, talk
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import ServerProcess, our_server, published_server, put_launcher

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
SSE = {"accept": "text/event-stream"}
INIT = json.dumps(envelope("initialize", {"protocolVersion": 1}, 1)).encode()
ACP = "/v1/acp/answers"


class Case(NamedTuple):
    method: str
    path: str
    body: bytes | None
    headers: Mapping[str, str]
    status: int
    urn: str = ""
    title: str = ""
    detail: str = ""


# In this order, on a server id that is new at the top; what the published server answers to the same.
CASES = [
    Case("GET", "/", None, {}, 200),
    Case("GET", "/v1/health", None, {}, 200),
    Case("HEAD", "/v1/health", None, {}, 200),
    Case("GET", "/nope", None, {}, 404, "invalid_request", "Not Found", "endpoint not found"),
    Case("GET", "/v1/health/", None, {}, 404, "invalid_request", "Not Found", "endpoint not found"),
    Case("GET", "/v1/acp/", None, {}, 404, "invalid_request", "Not Found", "endpoint not found"),
    Case("GET", "/v1/acp", None, {}, 200),
    Case("GET", ACP, None, SSE, 404, "session_not_found", "Session Not Found", "session not found: answers"),
    Case(
        "GET",
        ACP,
        None,
        {"accept": "text/html", "last-event-id": "x"},
        406,
        "not_acceptable",
        "Not Acceptable",
        "not acceptable: accept must allow text/event-stream",
    ),
    Case(
        "GET",
        ACP,
        None,
        {**SSE, "last-event-id": "x"},
        400,
        "invalid_request",
        "Invalid Request",
        "invalid request: Last-Event-ID must be a positive integer",
    ),
    Case(
        "GET",
        ACP,
        None,
        {**SSE, "last-event-id": "-1"},
        400,
        "invalid_request",
        "Invalid Request",
        "invalid request: Last-Event-ID must be a positive integer",
    ),
    Case(
        "GET",
        ACP,
        None,
        {**SSE, "last-event-id": "1.5"},
        400,
        "invalid_request",
        "Invalid Request",
        "invalid request: Last-Event-ID must be a positive integer",
    ),
    Case("GET", ACP, None, {**SSE, "last-event-id": ""}, 404, "session_not_found", "Session Not Found"),
    Case("GET", ACP, None, {"accept": "text/*"}, 404, "session_not_found", "Session Not Found"),
    Case(
        "POST",
        ACP,
        INIT,
        {},
        415,
        "unsupported_media_type",
        "Unsupported Media Type",
        "unsupported media type: content-type must be application/json",
    ),
    Case(
        "POST",
        ACP,
        b"x",
        {"content-type": "text/plain", "accept": "text/html"},
        415,
        "unsupported_media_type",
        "Unsupported Media Type",
    ),
    Case(
        "POST",
        ACP,
        b"x",
        {"content-type": "application/vnd.x+json"},
        415,
        "unsupported_media_type",
        "Unsupported Media Type",
    ),
    Case(
        "POST",
        ACP,
        b"x",
        {**JSON, "accept": "text/html"},
        406,
        "not_acceptable",
        "Not Acceptable",
        "not acceptable: accept must allow application/json",
    ),
    Case(
        "POST",
        ACP + "?agent=bogus",
        b"not json",
        JSON,
        400,
        "invalid_request",
        "Invalid Request",
        "invalid request:",
    ),
    Case(
        "POST",
        ACP + "?agent=claude",
        b"not json",
        JSON,
        400,
        "invalid_request",
        "Invalid Request",
        "invalid request:",
    ),
    Case("POST", ACP, b"", JSON, 400, "invalid_request", "Invalid Request", "invalid request:"),
    Case(
        "POST",
        ACP,
        INIT,
        JSON,
        400,
        "invalid_request",
        "Invalid Request",
        "invalid request: missing required 'agent' query parameter for first POST to /v1/acp/answers",
    ),
    Case("POST", ACP, INIT, {"content-type": "application/json; charset=utf-8"}, 400, "invalid_request"),
    Case(
        "POST",
        ACP + "?agent=bogus",
        INIT,
        JSON,
        400,
        "unsupported_agent",
        "Unsupported Agent",
        "unsupported agent: bogus",
    ),
    Case(
        "POST",
        ACP + "?agent=codex",
        INIT,
        JSON,
        404,
        "agent_not_installed",
        "Agent Not Installed",
        "agent not installed: codex",
    ),
    Case("GET", ACP, None, SSE, 404, "session_not_found"),
    Case("POST", ACP + "?agent=claude", INIT, JSON, 200),
    Case("POST", ACP, INIT, JSON, 200),
    Case("POST", ACP + "?agent=claude", INIT, JSON, 200),
    Case(
        "POST",
        ACP + "?agent=codex",
        INIT,
        JSON,
        409,
        "conflict",
        "Conflict",
        "conflict: server 'answers' already exists for agent 'claude'; requested 'codex'",
    ),
    Case("POST", ACP, b"[]", JSON, 400, "invalid_request", "Invalid Request", "invalid request:"),
    Case("POST", ACP, b'"text"', JSON, 400, "invalid_request", "Invalid Request", "invalid request:"),
    Case("POST", ACP, b"{}", JSON, 202),
    Case("POST", ACP, b'{"jsonrpc":"2.0","method":"x"}', JSON, 202),
    Case("POST", ACP, b'{"jsonrpc":"2.0","id":5,"result":{}}', JSON, 202),
    Case("POST", ACP, b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}', JSON, 202),
    Case("POST", ACP, b'{"jsonrpc":"2.0","id":6,"method":"nope/nope"}', JSON, 200),
    Case("GET", "/v1/agents", None, {"accept": "text/html"}, 200),
    Case(
        "GET",
        "/v1/agents/bogus",
        None,
        {},
        400,
        "unsupported_agent",
        "Unsupported Agent",
        "unsupported agent: bogus",
    ),
    Case("GET", "/v1/agents/%00", None, {}, 400, "unsupported_agent", "Unsupported Agent"),
    Case("DELETE", "/v1/acp/never", None, {}, 204),
]


def exchange(server: ServerProcess, case: Case) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(case.method, case.path, body=case.body, headers=dict(case.headers))
        response = connection.getresponse()
        return response.status, response.getheader("content-type", ""), response.read()
    finally:
        connection.close()


def check(server: ServerProcess) -> None:
    for case in CASES:
        status, kind, body = exchange(server, case)
        assert status == case.status, (case, body)
        if status in (202, 204):
            assert body == b""
        elif status >= 400:
            problem: dict[str, Any] = json.loads(body)
            assert kind == "application/problem+json", case
            assert problem["status"] == status
            assert problem["type"] == f"urn:sandbox-agent:error:{case.urn}", case
            assert problem["title"].startswith(case.title), case
            assert problem["detail"].startswith(case.detail), (case, problem)
        elif case.method != "HEAD":
            assert kind == "application/json"
            json.loads(body)


def test_our_server_answers_the_table(tmp_path: Path) -> None:
    put_launcher(tmp_path / "data", "claude", [sys.executable, "-m", "sandbox_agent.agents.mock"])
    with our_server(tmp_path, env={"PATH": "/usr/bin:/bin"}) as ours:
        check(ours)


def test_the_published_server_answers_the_same_table(tmp_path_factory: pytest.TempPathFactory) -> None:
    npm_or_skip(PUBLISHED_SERVER, "the answers of the published server")
    with published_server(tmp_path_factory.mktemp("published")) as peer:
        check(peer)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/acp", "GET, HEAD"),
        ("PATCH", "/v1/acp/x", "DELETE, GET, HEAD, POST, PUT"),
        ("POST", "/v1/health", "GET, HEAD"),
        ("PURGE", "/", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_has_not_is_405_with_all_that_it_has(
    server: ServerProcess, method: str, path: str, allowed: str
) -> None:
    async with client_of(server) as client:
        response = await client.request(method, path)
    assert response.status_code == 405
    assert ", ".join(sorted(response.headers["allow"].split(", "))) == allowed
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["title"] == "Method Not Allowed"


@pytest.mark.parametrize("value", ["maybe", "1", "", "TRUE"])
@pytest.mark.parametrize("path", ["/v1/agents", "/v1/agents/mock"])
async def test_a_flag_that_is_no_boolean_is_a_400(server: ServerProcess, path: str, value: str) -> None:
    async with client_of(server) as client:
        for name in ("config", "no_cache"):
            response = await client.get(path, params={name: value})
            assert response.status_code == 400
            assert response.json()["type"] == "urn:sandbox-agent:error:invalid_request"


BAD_BODIES = [
    b"\xff",
    b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"a":"\xc3"}}',
    b'{"jsonrpc":"2.0","method":7}',
    b'{"jsonrpc":"2.0","id":true,"method":"x"}',
    b'{"jsonrpc":"2.0","id":{},"method":"x"}',
    b'{"jsonrpc":"2.0","id":1e999,"method":"x"}',
    b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"jsonrpc":"2.0","id":1,"method":"x"} trailing',
    b'{"jsonrpc":"2.0","id":1,"method":"x","params":NaN}',
    b"\0",
    b'{"a":"\0"}',
]


async def test_a_bad_body_is_a_400_and_the_connection_goes_on(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        for body in BAD_BODIES:
            response = await talking.post(body)
            assert response.status_code == 400, body[:60]
            assert "\n" not in response.json()["detail"]
        await talking.prompt("echo still here")


async def test_a_body_that_is_no_envelope_starts_no_agent(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh(), open_=False) as talking:
        for body in (b"nonsense", b"[]", b""):
            assert (await talking.post(body, agent="mock")).status_code == 400
        assert (await talking.client.get(talking.path, headers=SSE)).status_code == 404


@pytest.mark.parametrize(
    "text", ["\0 \u0001 \x7f", "ünïcödé 👋 \u2028\u2029", "\ud800 lone", "a\r\nb\n\nc", "x" * 3_000_000]
)
async def test_any_text_goes_to_the_agent_and_back(
    server: ServerProcess, fresh: Callable[[], str], text: str
) -> None:
    async with talk(server, fresh()) as talking, talking.stream() as stream:
        await talking.prompt("echo " + text)
        await stream.until("end_turn")
        assert stream.texts == text.strip()


async def test_a_body_over_several_lines_is_one_message_to_the_agent(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh(), open_=False) as talking:
        body = json.dumps(envelope("initialize", {"protocolVersion": 1}, 1), indent=2).replace("\n", "\r\n")
        response = await talking.post(body.encode(), agent="mock")
        assert response.json()["result"]["protocolVersion"] == 1


@pytest.mark.parametrize(
    "server_id", ["a b", "ü👋", "...", "%25", "x" * 256, "a;b", "a?".replace("?", "%3F")]
)
async def test_a_server_id_may_be_any_printable_text(server: ServerProcess, server_id: str) -> None:
    async with client_of(server) as client:
        path = "/v1/acp/" + "".join(f"%{byte:02X}" for byte in server_id.encode())
        response = await client.post(path, params={"agent": "mock"}, content=INIT, headers=JSON)
        assert response.status_code == 200
        listed = (await client.get("/v1/acp")).json()["servers"]
        (mine,) = [each for each in listed if each["serverId"] == server_id]
        assert mine["agent"] == "mock"
        assert mine["createdAtMs"] > 1_600_000_000_000
        assert (await client.delete(path)).status_code == 204
        assert server_id not in [each["serverId"] for each in (await client.get("/v1/acp")).json()["servers"]]


@pytest.mark.parametrize(
    "path", ["/v1/acp/%00", "/v1/acp/%0A", "/v1/acp/" + "x" * 257, "/v1/acp/a%C2%80b", "/v1/acp/%2E%2E"]
)
async def test_a_server_id_that_nobody_can_read_is_a_400(server: ServerProcess, path: str) -> None:
    async with client_of(server) as client:
        for method in ("GET", "POST", "DELETE"):
            response = await client.request(
                method,
                path,
                content=INIT if method == "POST" else None,
                headers=JSON if method == "POST" else SSE,
            )
            assert response.status_code == 400


@pytest.mark.parametrize(
    "agent", ["%00", "..%2F..%2Fetc%2Fpasswd", "%0Aclaude", "x" * 5000, "%F0%9F%98%80", "a%20b"]
)
async def test_an_agent_that_cannot_exist_is_a_400(
    server: ServerProcess, fresh: Callable[[], str], agent: str
) -> None:
    async with client_of(server) as client:
        response = await client.post(f"/v1/acp/{fresh()}?agent={agent}", content=INIT, headers=JSON)
        assert response.status_code == 400
        assert "passwd'" not in response.text


async def test_the_answer_to_a_request_has_the_stderr_of_an_agent_that_complains(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    script = (
        "import sys, json\n"
        "for line in sys.stdin:\n"
        '    print("it went wrong", file=sys.stderr, flush=True)\n'
        "    asked = json.loads(line)\n"
        '    error = {"code": -32603, "message": "no", "data": asked.get("params")}\n'
        '    print(json.dumps({"id": asked["id"], "error": error}), flush=True)\n'
    )
    put_launcher(server.log.parent / "data", "complains", [sys.executable, "-c", script])
    async with talk(server, fresh(), open_=False) as talking:
        samples: list[Any] = [None, {"mine": 1}, [1], "text"]
        for data in samples:
            answer = await talking.request("m", data, agent="complains")
            shown = answer["error"].get("data")
            if data is None:
                assert shown["agentStderr"].startswith("it went wrong")
            elif isinstance(data, dict):
                assert shown["agentStderr"].endswith("it went wrong\n")
                assert shown["mine"] == 1
            else:
                assert shown == data
