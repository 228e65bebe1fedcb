"""Tickets: what a browser's EventSource and WebSocket use in place of the token."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import httpx2
import pytest
import uvicorn

from sandbox_agent.cli.logs import configure_logging
from sandbox_agent.server.app import Application
from sandbox_agent.server.config import ServerConfig
from sandbox_agent.server.http.auth import BearerAuth
from sandbox_agent.server.tickets import (
    MAX_TICKET_PATH,
    MAX_TICKETS,
    TERMINAL,
    TICKET_SECONDS,
    Tickets,
)
from tests.server.talk import Talk, client_of, talk
from tests.support.servers import ServerProcess, free_port, our_server

pytestmark = pytest.mark.anyio

TOKEN = "s3cret-token-0123456789"
TERMINAL_PATH = "/v1/processes/{process_id}/terminal/ws"
JSON = {"content-type": "application/json"}


class Clock:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A server in this process, a client that has its token, and a browser that has not."""

    def __init__(self, app: Application, client: httpx2.AsyncClient, browser: httpx2.AsyncClient) -> None:
        self.tickets = app.tickets
        self.clock = Clock()
        app.tickets.clock = self.clock
        self.client, self.browser = client, browser

    async def create(self, name: str) -> str:
        """Create a session and return the path of its stream."""
        path = f"/v1/sessions/{quote(name, safe='')}"
        assert (await self.client.post(path, json={"agent": "mock"})).status_code == 200
        return f"{path}/events/sse"

    async def ticket(self, path: str, scope: str = "events") -> str:
        response = await self.client.post("/v1/tickets", json={"scope": scope, "path": path})
        assert response.status_code == 200, response.text
        assert response.headers["cache-control"] == "no-store"
        assert set(response.json()) == {"ticket", "expiresAt"}
        ticket: str = response.json()["ticket"]
        return ticket

    @asynccontextmanager
    async def stream(self, url: str) -> AsyncGenerator[httpx2.Response]:
        """Open a stream as an EventSource does, and leave once the server has noticed that it was closed."""
        before = self.streams
        async with self.browser.stream("GET", url, headers={"accept": "text/event-stream"}) as response:
            assert response.status_code == 200, await response.aread()
            chunks = response.aiter_bytes()  # when it is garbage collected, the stream is closed
            assert (await anext(chunks)).startswith(b":")
            assert self.streams == before + 1
            yield response
        with anyio.fail_after(20):
            while self.streams > before:
                await self.browser.get("/v1/health")

    @property
    def streams(self) -> int:
        tickets: dict[bytes, Any] = self.tickets._tickets  # pyright: ignore[reportPrivateUsage]
        return sum(ticket.streams for ticket in tickets.values())

    async def status(self, url: str, method: str = "GET", **headers: str) -> int:
        response = await self.browser.request(method, url, headers={"accept": "*/*", **headers})
        if response.status_code == 401 and method != "HEAD":
            assert response.json()["type"] == "urn:sandbox-agent:error:token_invalid"
            assert response.headers["www-authenticate"] == "Bearer"
            assert "ticket" in response.json()["detail"] or "ticket=" not in url
        return response.status_code


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    app = Application(ServerConfig(token=TOKEN))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", lifespan="on"))
    listener = socket.create_server(("127.0.0.1", port := free_port()))
    serving = asyncio.ensure_future(server.serve([listener]))
    process = ServerProcess([], port=port, log=tmp_path / "unused", token=TOKEN)
    async with client_of(process) as client, httpx2.AsyncClient(base_url=process.url, timeout=60) as browser:
        yield Place(app, client, browser)
        await app.end_agents()
    server.should_exit = True
    await serving


async def test_a_ticket_opens_its_stream_as_often_as_an_eventsource_reconnects(place: Place) -> None:
    path = await place.create("chat")
    url = f"{path}?ticket={await place.ticket(path)}"
    for _ in range(3):
        async with place.stream(url):
            place.clock.now += 10 * TICKET_SECONDS  # a ticket does not expire while its stream is open
        place.clock.now += TICKET_SECONDS - 1
    async with place.stream(url), place.stream(url):  # the old one may be there still
        place.clock.now += 10 * TICKET_SECONDS
    place.clock.now += TICKET_SECONDS
    assert await place.status(url) == 401


async def test_a_ticket_expires_that_is_not_used(place: Place) -> None:
    path = await place.create("chat")
    url = f"{path}?ticket={await place.ticket(path)}"
    place.clock.now += TICKET_SECONDS
    assert await place.status(url) == 401
    await place.ticket(path)
    assert len(place.tickets) == 1  # the expired one was dropped


async def test_a_reconnect_continues_after_the_last_event(place: Place) -> None:
    path = await place.create("chat")
    messages = path.replace("events/sse", "messages")
    assert (await place.client.post(messages, json={"message": "echo hello"})).status_code == 204
    url = f"{path}?ticket={await place.ticket(path)}"
    async with place.browser.stream("GET", url) as response:
        async for line in response.aiter_lines():
            if line.startswith("id: 2"):
                break
    async with place.browser.stream("GET", url, headers={"last-event-id": "2"}) as response:
        lines = [line async for line in _ids(response)]
    assert lines == ["id: 3"]


async def test_a_ticket_opens_the_stream_of_a_connection(place: Place) -> None:
    talking = Talk(place.client, "s")
    await talking.open()
    ticket = await place.ticket(talking.path)
    async with place.stream(f"{talking.path}?ticket={ticket}"):
        pass
    # What would take another client's place is another request.
    for query in ("attach=other", "attach=other&take_over=true"):
        assert await place.status(f"{talking.path}?{query}&ticket={ticket}") == 401
    assert await place.status(f"{talking.path}?ticket={ticket}", **{"sandbox-agent-client": "other"}) == 401
    bound = f"{talking.path}?attach=other"
    async with place.stream(f"{bound}&ticket={await place.ticket(bound)}"):
        pass
    await talking.delete()


async def test_a_ticket_opens_nothing_else(place: Place) -> None:
    path, other = await place.create("chat"), await place.create("chat two")
    ticket = await place.ticket(path)
    url = f"{path}?ticket={ticket}"
    for method in ("POST", "HEAD", "PUT", "DELETE", "OPTIONS"):
        assert await place.status(url, method, **JSON) == 401
    for elsewhere in (
        other,
        path.removesuffix("/sse"),
        path + "/",
        path.replace("chat", "cha%74"),
        path.replace("chat", "x/../chat"),
        path.replace("chat", "x%2F..%2Fchat"),
        path.replace("chat", "Chat"),
        path.replace("/v1", "//v1"),
        "/v1/acp/chat",
        "/v1/acp",
        "/v1/sessions",
        "/v1/tickets",
        "/",
    ):
        assert await raw_status(place, f"{elsewhere}?ticket={ticket}") == 401, elsewhere
    for query in (
        f"include_raw=true&ticket={ticket}",
        f"ticket={ticket}&offset=1",
        f"ticket={ticket}&ticket={ticket}",
        f"ticket={ticket}&",
        f"ticket={ticket}x",
        f"ticket={ticket[:-1]}",
        "ticket=",
        f"Ticket={ticket}",
        f"access_token={ticket}",
        f"token={ticket}",
    ):
        assert await raw_status(place, f"{path}?{query}") == 401, query
    assert await place.status(path, authorization=f"Bearer {ticket}") == 401
    assert await place.status(url, authorization="Bearer wrong") == 401
    async with place.stream(url):  # and it is still valid
        pass


async def raw_status(place: Place, target: str) -> int:
    """Send a target as it is; HTTP clients would change it."""
    url = place.browser.base_url
    stream = await anyio.connect_tcp(url.host, url.port or 0)
    async with stream:
        await stream.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return int((await stream.receive()).split(b" ", 2)[1])


async def test_an_encoded_session_and_a_query_are_bound_as_they_are(place: Place) -> None:
    path = await place.create("a/b ü")
    bound = f"{path}?offset=1&include_raw=true"
    async with place.stream(f"{bound}&ticket={await place.ticket(bound)}"):
        pass


async def _ids(response: httpx2.Response) -> AsyncGenerator[str]:
    """Return the first line with an id."""
    async for line in response.aiter_lines():
        if line.startswith("id:"):
            yield line
            return


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"scope": "events"}, "path"),
        ({"scope": "all", "path": "/v1/acp/s"}, "all"),
        ({"scope": "events", "path": ""}, "percent-encoded"),
        ({"scope": "events", "path": "/v1/acp/a b"}, "percent-encoded"),
        ({"scope": "events", "path": "/v1/acp/ü"}, "percent-encoded"),
        ({"scope": "events", "path": "/v1/acp/s#x"}, "fragment"),
        ({"scope": "events", "path": "/v1/acp/.."}, "segment"),
        ({"scope": "events", "path": "/v1/acp/%2e%2E"}, "segment"),
        ({"scope": "events", "path": "/v1/acp/s?ticket=x"}, "already"),
        ({"scope": "events", "path": "/v1/acp/s?x=" + "x" * MAX_TICKET_PATH}, "characters"),
        ({"scope": "events", "path": "http://127.0.0.1/v1/acp/s"}, "stream of this server"),
        ({"scope": "events", "path": "/v1/acp"}, "stream of this server"),
        ({"scope": "events", "path": "/v1/sessions/s/messages/stream"}, "stream of this server"),
        ({"scope": "events", "path": "/v1/sessions/s/export"}, "stream of this server"),
        ({"scope": "terminal", "path": "/v1/acp/s"}, "stream of this server"),
    ],
)
async def test_there_are_tickets_for_streams_only(place: Place, body: Mapping[str, str], says: str) -> None:
    response = await place.client.post("/v1/tickets", json=body)
    assert response.status_code == 400
    assert response.json()["type"] == "urn:sandbox-agent:error:invalid_request"
    assert says in response.json()["detail"]
    assert len(place.tickets) == 0


async def test_a_ticket_needs_the_token(place: Place) -> None:
    body = {"scope": "events", "path": "/v1/acp/s"}
    assert (await place.browser.post("/v1/tickets", json=body)).status_code == 401


async def test_tickets_do_not_grow_without_bound_and_open_streams_keep_theirs() -> None:
    clock = Clock()
    tickets = Tickets({"events": ["/v1/acp/{server_id}"]}, clock=clock)
    used, unused = tickets.issue("events", "/v1/acp/used"), tickets.issue("events", "/v1/acp/unused")
    stream = tickets.redeem(_request("/v1/acp/used", used))
    assert stream is not None
    with stream:
        newest = [tickets.issue("events", f"/v1/acp/{number}") for number in range(MAX_TICKETS)][-1]
        assert len(tickets) == MAX_TICKETS
        assert tickets.redeem(_request("/v1/acp/unused", unused)) is None
        assert tickets.redeem(_request(f"/v1/acp/{MAX_TICKETS - 1}", newest)) is not None
        assert tickets.redeem(_request("/v1/acp/used", used)) is not None
    clock.now += TICKET_SECONDS
    tickets.issue("events", "/v1/acp/last")
    assert len(tickets) == 1


def _request(path: str, ticket: str, kind: str = "http") -> dict[str, Any]:
    return {
        "type": kind,
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": f"ticket={ticket}".encode(),
        "headers": [],
    }


async def test_a_terminal_ticket_is_used_once_by_a_websocket_within_its_time() -> None:
    clock = Clock()
    tickets = Tickets({TERMINAL: [TERMINAL_PATH]}, clock=clock)
    opened: list[str] = []
    statuses: list[int] = []

    async def app(scope: Mapping[str, Any], _receive: object, _send: object) -> None:
        opened.append(scope["path"])

    async def send(message: Mapping[str, Any]) -> None:
        if "status" in message:
            statuses.append(message["status"])

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body is not read")

    guard: Any = BearerAuth(app, TOKEN, tickets)
    path = TERMINAL_PATH.format(process_id="proc_1")
    ticket = tickets.issue(TERMINAL, path)
    await guard(_request(path, ticket), receive, send)  # no WebSocket
    await guard(_request(path.replace("1", "2"), ticket, "websocket"), receive, send)
    assert opened == []
    await guard(_request(path, ticket, "websocket"), receive, send)
    await guard(_request(path, ticket, "websocket"), receive, send)
    assert opened == [path]
    late = tickets.issue(TERMINAL, path)
    clock.now += TICKET_SECONDS
    await guard(_request(path, late, "websocket"), receive, send)
    assert opened == [path]
    assert statuses.count(401) >= 1
    query = _request(path, "x", "websocket") | {"query_string": f"access_token={TOKEN}".encode()}
    await guard(query, receive, send)
    assert opened == [path, path]


async def test_a_server_without_a_token_accepts_tickets_too(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with talk(server) as talking:
            body = {"scope": "events", "path": talking.path}
            ticket = (await talking.client.post("/v1/tickets", json=body)).json()["ticket"]
            async with talking.stream(ticket=ticket) as stream:
                await stream.raw()


async def test_a_ticket_is_in_no_log(tmp_path: Path) -> None:
    with our_server(tmp_path, "--log-level", "debug", token=TOKEN) as server:
        async with talk(server) as talking:
            body = {"scope": "events", "path": talking.path}
            ticket = (await talking.client.post("/v1/tickets", json=body)).json()["ticket"]
            async with httpx2.AsyncClient(base_url=server.url) as browser:
                async with browser.stream("GET", f"{talking.path}?ticket={ticket}") as response:
                    assert response.status_code == 200
                await browser.get(f"/v1/acp/other?ticket={ticket}")
                await browser.get(f"/v1/acp/{'x' * 20_000}?ticket={ticket}")
        assert server.stop() == 0
    assert ticket not in server.log.read_text()


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("name", ["ticket", "access_token", "token"])
def test_credentials_in_a_logged_url_are_redacted(
    capsys: pytest.CaptureFixture[str], log_format: str, name: str
) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        configure_logging("info", log_format)
        logging.getLogger("test").info("GET /x?a=1&%s=s3cr%%74-of-someone&b=2 HTTP/1.1", name)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    logged = capsys.readouterr().err
    assert f"GET /x?a=1&{name}=[redacted]&b=2 HTTP/1.1" in logged
