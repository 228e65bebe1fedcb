"""Who opens a terminal: everything that may not is refused before the handshake, with a problem document."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.kit import connect, read_all
from tests.server.processes.viewing import TOKEN, Terminals, terminals
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
HANDSHAKE = {
    "Host": "localhost",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}
ALLOWED = "https://app.example"
OPENED = 101


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a token, which logs all that it can."""
    with our_server(tmp_path_factory.mktemp("token"), "--log-level", "debug", token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def tokenless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without a token."""
    with our_server(tmp_path_factory.mktemp("local"), "--cors-allow-origin", ALLOWED) as running:
        yield running


@pytest.fixture
async def there(server: ServerProcess) -> AsyncGenerator[Terminals]:
    async with terminals(server) as found:
        yield found


def request(
    server: ServerProcess, path: str, headers: Mapping[str, str | None] = {}, *, start: str = ""
) -> tuple[int, dict[str, Any]]:
    """Send a handshake; return the status, and the problem if it is refused."""
    fields = {name: value for name, value in {**HANDSHAKE, **headers}.items() if value is not None}
    head = [start or f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    with connect(server, "\r\n".join([*head, "", ""]).encode()) as connection:
        connection.settimeout(5)
        first = connection.recv(65_536)
        status = int(first.split(b" ", 2)[1])
        if status == OPENED:
            return status, {}
        answer = first + read_all(connection)
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in top, answer
    problem: dict[str, Any] = json.loads(body)
    assert problem["status"] == status
    return status, problem


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def path_of(process: str, query: str = "") -> str:
    return f"/v1/processes/{process}/terminal/ws{query}"


async def ticket(there: Terminals, path: str, scope: str = "terminal") -> str:
    answer = await there.client.post("/v1/tickets", json={"scope": scope, "path": path})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["ticket"])


async def test_the_token_opens_a_terminal_in_the_header_or_in_the_query(
    server: ServerProcess, there: Terminals
) -> None:
    process = await there.shell()
    assert request(server, path_of(process), bearer(TOKEN))[0] == OPENED
    assert request(server, path_of(process, f"?access_token={TOKEN}"))[0] == OPENED
    await there.kill(process)


async def test_without_the_token_nothing_is_opened(server: ServerProcess, there: Terminals) -> None:
    process = await there.shell()
    for query, headers in (
        ("", {}),
        ("", bearer("wrong")),
        ("", {"Authorization": TOKEN}),
        ("", {"Authorization": "Bearer"}),
        ("?access_token=wrong", {}),
        ("?access_token=", {}),
        (f"?access_token={TOKEN}", bearer("wrong")),  # the header counts
        (f"?token={TOKEN}", {}),
        ("?ticket=wrong", {}),
    ):
        status, problem = request(server, path_of(process, query), headers)
        assert (status, problem["type"]) == (401, "urn:sandbox-agent:error:token_invalid"), (query, headers)
    # Nor is it said what exists.
    assert request(server, path_of("proc_99"))[0] == 401
    assert (await there.get(process))["status"] == "running"
    await there.kill(process)


async def test_a_ticket_opens_one_terminal_once(server: ServerProcess, there: Terminals) -> None:
    process, other = await there.shell(), await there.shell()
    path = path_of(process)
    value = await ticket(there, path)
    assert request(server, path_of(other, f"?ticket={value}"))[0] == 401
    assert request(server, f"{path}?ticket={value}")[0] == OPENED
    assert request(server, f"{path}?ticket={value}")[0] == 401
    both = await ticket(there, path)
    assert request(server, f"{path}?ticket={both}&ticket={both}")[0] == 401
    for_events = await ticket(there, f"/v1/processes/{process}/logs", "events")
    assert request(server, f"{path}?ticket={for_events}")[0] == 401
    answer = await there.client.post("/v1/tickets", json={"scope": "events", "path": path})
    assert answer.status_code == 400
    for created in (process, other):
        await there.kill(created)


async def test_the_log_has_no_token_ticket_or_input(server: ServerProcess, there: Terminals) -> None:
    process = await there.create("cat")
    value = await ticket(there, path_of(process))
    assert request(server, path_of(process, f"?ticket={value}"))[0] == OPENED
    assert request(server, path_of(process, f"?ticket={value}"))[0] == 401
    assert request(server, path_of(process, f"?access_token={TOKEN}"))[0] == OPENED
    assert request(server, path_of("proc_99", f"?access_token={TOKEN}"))[0] == 404
    async with there.view(process) as view:
        await view.type("my-secret-password\r")
        await view.says(b"my-secret-password")
    await there.kill(process)
    log = server.log.read_text()
    assert f"process {process} has ended" in log
    for secret in (TOKEN, value, "my-secret-password", "access_token=s3"):
        assert secret not in log
    assert "ERROR" not in log


async def test_what_cannot_be_opened_is_named(server: ServerProcess, there: Terminals) -> None:
    pipes = (await there.client.post("/v1/processes", json={"command": "sleep", "args": ["99"]})).json()["id"]
    token = bearer(TOKEN)
    status, problem = request(server, path_of(pipes), token)
    assert (status, problem["type"]) == (409, "urn:sandbox-agent:error:conflict")
    status, problem = request(server, path_of("proc_99"), token)
    assert (status, problem["type"]) == (404, "urn:sandbox-agent:error:not_found")
    await there.kill(pipes)
    process = await there.shell()
    plain = await there.client.get(path_of(process))
    assert plain.status_code == 400
    assert "WebSocket" in plain.json()["detail"]
    assert (await there.client.post(path_of(process))).status_code == 405
    await there.kill(process)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-WebSocket-Version": "8"}, 400),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"X-Long": "x" * 10_000}, 431),
        ({"X-Longer": "x" * 70_000}, 431),
    ],
)
async def test_a_bad_handshake_is_refused(
    server: ServerProcess, there: Terminals, headers: dict[str, str | None], status: int
) -> None:
    process = await there.shell()
    assert request(server, path_of(process), {**bearer(TOKEN), **headers})[0] == status
    assert request(server, path_of(process, "?x=" + "x" * 20_000), bearer(TOKEN))[0] == 414
    assert request(server, path_of(process, "?x=" + "x" * 10_000), bearer(TOKEN))[0] == 431
    await there.kill(process)


@pytest.mark.parametrize("start", ["POST {} HTTP/1.1", "GET {} HTTP/1.0", "GET /v1/health HTTP/1.1"])
async def test_other_requests_for_an_upgrade_are_answered_as_if_they_had_not_asked(
    server: ServerProcess, there: Terminals, start: str
) -> None:
    process = await there.shell()
    head = [start.format(path_of(process)), *(f"{name}: {value}" for name, value in HANDSHAKE.items())]
    lines = [*head, f"Authorization: Bearer {TOKEN}", "Content-Length: 0", "", ""]
    with connect(server, "\r\n".join(lines).encode()) as connection:
        connection.settimeout(5)
        status = int(connection.recv(65_536).split(b" ", 2)[1])
    assert status == {"POST": 405, "GET ": 200 if "health" in start else 400}[start[:4]]
    await there.kill(process)


async def test_a_handshake_before_an_earlier_response_is_refused(
    server: ServerProcess, there: Terminals
) -> None:
    process = await there.create("sleep", "1000")
    first = (
        f"GET /v1/processes/{process}/logs?follow=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}"
    )
    second = [f"GET {path_of(process)} HTTP/1.1", *(f"{name}: {value}" for name, value in HANDSHAKE.items())]
    text = "\r\n".join([first, "", *second, f"Authorization: Bearer {TOKEN}", "", ""])
    with connect(server, text.encode()) as connection:
        connection.settimeout(5)
        answer = read_all(connection)
    assert b"101 Switching" not in answer
    await there.kill(process)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, OPENED),
        ({"Host": "127.0.0.1:80"}, OPENED),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": ALLOWED}, OPENED),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, OPENED),
    ],
)
async def test_a_page_of_another_site_opens_no_terminal_of_a_server_without_a_token(
    tokenless: ServerProcess, headers: dict[str, str], status: int
) -> None:
    async with terminals(tokenless) as there:
        process = await there.shell()
        assert request(tokenless, path_of(process), headers)[0] == status
        await there.kill(process)


async def test_terminals_count_as_connections(tmp_path: Path) -> None:
    with our_server(tmp_path, "--max-connections", "3", token=TOKEN) as server:
        async with terminals(server) as there:  # one
            process = await there.shell()
            async with there.view(process), there.view(process):
                assert request(server, path_of(process), bearer(TOKEN))[0] == 503
            await there.kill(process)
