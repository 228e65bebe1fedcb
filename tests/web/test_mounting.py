"""``create_app`` in applications of FastAPI and Starlette."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from fastapi import FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sandbox_agent import AgentMessageChunk, ConnectionLostError, SandboxAgent
from sandbox_agent.client import asgi
from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.server import Authenticate, create_app
from sandbox_agent.testing.asgi import ASGITransport
from tests.server.files.test_snapshots import make_repo

from .conftest import TOKEN, Outer, in_starlette, listening

pytestmark = pytest.mark.anyio
TIMEOUT = 30
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def client_of(app: ASGIApp, **headers: str) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


async def said_by(session: Any, prompt: str) -> str:
    return "".join(
        [
            event.update.text
            async for event in session.stream(prompt)
            if isinstance(event.update, AgentMessageChunk)
        ]
    )


async def test_a_mounted_server_serves_sessions_over_http(outer: Outer) -> None:
    with anyio.fail_after(TIMEOUT):
        async with (
            listening(outer(create_app(token=TOKEN))) as url,
            SandboxAgent.connect(f"{url}/agents", token=TOKEN) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            assert await said_by(session, "echo hello") == "hello"
            await sdk.sessions.create("driven", agent="mock")
            events = [event async for event in sdk.sessions.stream_turn("driven", "echo hi")]
            assert events[-1].type == "turn.ended"
            process = await sdk.processes.create("sh", args=["-c", "echo out; cat"], tty=True)
            async with sdk.processes.terminal(process.id) as terminal:
                assert b"out" in await anext(aiter(terminal))


@pytest.mark.parametrize("kind", [ASGITransport, httpx2.ASGITransport, httpx.ASGITransport])
async def test_a_whole_session_runs_in_one_process(outer: Outer, kind: Any) -> None:
    agents = create_app(token=TOKEN)
    with anyio.fail_after(TIMEOUT):
        async with agents.lifespan():
            transport = kind(app=outer(agents))
            async with SandboxAgent.connect("http://test/agents", token=TOKEN, transport=transport) as sdk:
                session = await sdk.create_session(agent="mock", permission_policy="allow_once")
                assert await said_by(session, "echo hello") == "hello"
                assert "granted" in await said_by(session, "permission")


def test_a_client_of_the_same_process_finds_what_its_agent_has_changed(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    agents = create_app(token=TOKEN)

    async def run() -> str:
        async with agents.lifespan():
            transport = ASGITransport(agents)
            async with SandboxAgent.connect("http://test", token=TOKEN, transport=transport) as sdk:
                session = await sdk.create_session(agent="mock", cwd=str(repo))
                await session.prompt("echo hello")
                (repo / "new").write_text("new\n")
                return (await sdk.files.diff(session)).text

    # In the loop of a program, not in that of pytest, which anyio knows.
    assert "+new" in asyncio.run(asyncio.wait_for(run(), TIMEOUT))


@pytest.mark.parametrize("root", ["/agents", "/a b/ä", "/x/"])
async def test_addresses_have_the_root_path(root: str) -> None:
    agents = create_app(token=TOKEN)
    app = Starlette(routes=[Mount(root, agents)])
    async with agents.lifespan(), client_of(app, **BEARER) as client:
        root = root.rstrip("/")
        found = (await client.get(f"{root}/")).json()["docs"]
        document = await client.get(found)
        assert document.json()["openapi"] == "3.0.3"
        assert document.json()["servers"] == [{"url": root}]
        assert (await client.get(f"{root}/v1/agents/mock")).json()["id"] == "mock"
        assert (await client.get(f"{root}/v1/sessions/a%2Fb")).json()["detail"].count("a/b") == 1
        outside = await client.get("/v1/health")
        assert outside.status_code == 404


async def test_a_proxy_may_remove_the_root_path() -> None:
    agents = create_app(token=TOKEN)
    transport = ASGITransport(agents, root_path="/agents")
    async with agents.lifespan(), httpx2.AsyncClient(transport=transport, headers=BEARER) as client:
        assert (await client.get("http://test/")).json()["docs"] == "http://test/agents/v1/openapi.json"
        assert (await client.get("http://test/agents/v1/agents/mock")).status_code == 200


@pytest.mark.parametrize("given", ["/agents/v1/sessions/s/events/sse", "/v1/sessions/s/events/sse"])
async def test_a_ticket_is_for_the_path_with_or_without_the_root(outer: Outer, given: str) -> None:
    agents = create_app(token=TOKEN)
    app = outer(agents)
    async with agents.lifespan(), client_of(app) as client:
        created = await client.post("/agents/v1/sessions/s", json={"agent": "mock"}, headers=BEARER)
        assert created.status_code == 200
        body = {"scope": "events", "path": given}
        ticket = (await client.post("/agents/v1/tickets", json=body, headers=BEARER)).json()["ticket"]
        path = f"/agents/v1/sessions/s/events/sse?ticket={ticket}"
        async with client.stream("GET", path) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    break


async def test_a_mounted_server_whose_lifespan_was_not_entered_says_so(outer: Outer) -> None:
    app = outer(create_app(token=TOKEN))
    async with client_of(app, **BEARER) as client:
        refused = await client.get("/agents/v1/health")
        assert refused.status_code == 503
        assert "lifespan=agents.lifespan" in refused.json()["detail"]


def test_a_websocket_is_refused_if_the_lifespan_was_not_entered(outer: Outer) -> None:
    client = TestClient(outer(create_app(token=TOKEN)))
    with pytest.raises(Exception) as refusal, client.websocket_connect("/agents/v1/processes/x/terminal/ws"):
        pass
    assert "503" in repr(refusal.value) or "lifespan" in repr(refusal.value)


async def test_the_lifespan_is_entered_once_at_a_time_and_again_later() -> None:
    agents = create_app(token=TOKEN)
    for _ in range(2):
        async with agents.lifespan(), client_of(agents, **BEARER) as client:
            assert (await client.get("/v1/health")).status_code == 200
            with pytest.raises(RuntimeError, match="runs already"):
                async with agents.lifespan():
                    pass
            assert (await client.get("/v1/agents/mock")).status_code == 200
        async with client_of(agents, **BEARER) as client:
            assert (await client.get("/v1/health")).status_code == 503


async def test_the_lifespan_is_part_of_one_of_the_programs() -> None:
    agents = create_app(token=TOKEN)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with agents.lifespan():
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/agents", agents)
    async with listening(app) as url, httpx2.AsyncClient(headers=BEARER) as client:
        assert (await client.get(f"{url}/agents/v1/agents/mock")).json()["id"] == "mock"


async def test_a_store_that_cannot_be_opened_fails_the_start(tmp_path: Path) -> None:
    agents = create_app(token=TOKEN, store=f"sqlite:{tmp_path}/no/such/../../\0")
    with pytest.raises((PersistError, ValueError)):
        async with agents.lifespan():
            pass
    async with client_of(agents, **BEARER) as client:
        assert (await client.get("/v1/health")).status_code == 503


@pytest.mark.parametrize("module", [httpx, httpx2])
async def test_a_client_that_buffers_is_refused_an_endless_stream(
    outer: Outer, module: Any, tmp_path: Path
) -> None:
    agents = create_app(token=TOKEN)
    transport = module.ASGITransport(app=outer(agents))
    client = module.AsyncClient(transport=transport, base_url="http://test/agents/v1", headers=BEARER)
    with anyio.fail_after(TIMEOUT):
        async with agents.lifespan(), client:
            await client.post("/sessions/s", json={"agent": "mock"})
            for path in ("/sessions/s/events/sse", f"/fs/watch?path={tmp_path}"):
                refused = await client.get(path)
                assert refused.status_code == 501
                assert "sandbox_agent.testing.asgi" in refused.json()["detail"]
            turn = await client.post("/sessions/s/messages/stream", json={"message": "echo hello"})
            assert "turn.ended" in turn.text


def test_a_test_client_of_starlette_reads_turns_and_is_refused_an_endless_stream(outer: Outer) -> None:
    with TestClient(outer(create_app(token=TOKEN)), headers=BEARER) as client:
        assert client.post("/agents/v1/sessions/s", json={"agent": "mock"}).status_code == 200
        assert client.get("/agents/v1/sessions/s/events/sse").status_code == 501
        turn = client.post("/agents/v1/sessions/s/messages/stream", json={"message": "echo hello"})
        assert "turn.ended" in turn.text


async def test_an_application_that_fails_is_a_lost_connection() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    async with httpx2.AsyncClient(transport=ASGITransport(broken)) as client:
        with pytest.raises(httpx2.RemoteProtocolError, match="broken"):
            await client.get("http://test/")


async def test_a_transport_passes_on_the_body_and_the_read_timeout() -> None:
    async def echoing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (message := await receive())["type"] == "http.request":
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
            if not message["more_body"]:
                break
        if scope["path"] == "/ends":
            return
        assert (await receive())["type"] == "http.disconnect"
        disconnected.set()

    async def parts() -> AsyncGenerator[bytes]:
        for number in range(100):
            yield b"%d," % number

    disconnected = asyncio.Event()
    async with httpx2.AsyncClient(transport=ASGITransport(echoing), timeout=0.05) as client:
        answer = await client.post("http://test/ends", content=parts())
        assert answer.text == "".join(f"{number}," for number in range(100))
        with pytest.raises(httpx2.ReadTimeout):
            await client.post("http://test/stays", content=b"x")
        await asyncio.wait_for(disconnected.wait(), TIMEOUT)


def by_header(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


async def by_cookie(connection: HTTPConnection) -> bool:
    return connection.cookies.get("user") == "ada"


def by_password(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == "Basic YWRhOnB3"


def forbidding(connection: HTTPConnection) -> bool:
    raise HTTPException(418, "a teapot", {"x-why": "tea"})


def broken(connection: HTTPConnection) -> Any:
    return {"user": "ada"}


@pytest.mark.parametrize(
    ("authenticate", "headers", "status"),
    [
        (by_header, {}, 401),
        (by_header, {"x-user": "ada"}, 200),
        (by_header, {"x-user": "policy"}, 400),
        (by_cookie, {"cookie": "user=ada"}, 200),
        (by_cookie, {"cookie": "user=bob"}, 401),
        (by_cookie, {"cookie": "user=ada", "origin": "http://test"}, 200),
        (by_cookie, {"cookie": "user=ada", "origin": "https://app.example"}, 403),
        (by_cookie, {"cookie": "user=ada", "origin": "https://evil.example"}, 403),
        (by_header, {"x-user": "ada", "origin": "https://app.example"}, 200),
        (by_header, {"x-user": "ada", "origin": "https://evil.example"}, 403),
        (by_password, {"authorization": "Basic YWRhOnB3"}, 200),
        (by_password, {"authorization": "Basic YWRhOnB3", "origin": "https://app.example"}, 403),
        (by_password, {"authorization": "Basic YWRhOnB3", "origin": "https://evil.example"}, 403),
        (forbidding, {}, 418),
        (forbidding, BEARER, 200),
        (by_header, {**BEARER, "origin": "https://evil.example"}, 200),
        (broken, {}, 500),
    ],
)
async def test_a_function_of_the_program_authenticates(
    authenticate: Authenticate, headers: dict[str, str], status: int
) -> None:
    agents = create_app(token=TOKEN, authenticate=authenticate, cors_allow_origins=["https://app.example"])
    async with agents.lifespan(), client_of(agents, **headers) as client:
        answer = await client.get("/v1/agents/mock")
        assert answer.status_code == status, answer.text
        assert answer.headers.get("x-why") == ("tea" if status == 418 else None)


@pytest.mark.parametrize(
    ("origins", "credentials", "origin", "allowed"),
    [
        (["https://app.example"], True, "https://app.example", True),
        (["https://app.example"], True, "https://evil.example", False),
        (["https://app.example"], False, "https://app.example", False),
        (["*"], False, "https://evil.example", False),
    ],
)
async def test_pages_of_others_use_cookies_only_if_credentials_are_allowed(
    origins: list[str], credentials: bool, origin: str, allowed: bool
) -> None:
    agents = create_app(
        authenticate=by_cookie, cors_allow_origins=origins, cors_allow_credentials=credentials
    )
    headers = {"Cookie": "user=ada", "Origin": origin}
    async with listening(in_starlette(agents)) as url:
        async with httpx2.AsyncClient(base_url=f"{url}/agents/v1", headers=headers) as client:
            ran = await client.post("/processes/run", json={"command": "true"})
            assert ran.status_code == (200 if allowed else 403)
        # Browsers send the handshake of a WebSocket with cookies, whatever CORS says.
        address = f"{url}/agents/v1/processes/none/terminal/ws".replace("http", "ws", 1)
        with pytest.raises(InvalidStatus) as refusal:
            async with connect(address, additional_headers=headers):
                pass
        assert refusal.value.response.status_code == (404 if allowed else 403)


async def test_the_user_who_answers_a_permission_request_is_known() -> None:
    agents = create_app(authenticate=by_header)
    async with agents.lifespan(), client_of(agents, **{"x-user": "ada"}) as client:
        path = ""
        await client.post("/v1/sessions/s", json={"agent": "mock", "permissionMode": "ask"})
        async with client.stream(
            "POST", "/v1/sessions/s/messages/stream", json={"message": "permission"}
        ) as turn:
            async for line in turn.aiter_lines():
                if line.startswith("data:") and "permission.requested" in line:
                    request = json.loads(line.removeprefix("data:"))["data"]["permission_id"]
                    path = f"/v1/sessions/s/permissions/{request}/reply"
                    assert (await client.post(path, json={"reply": "once"})).status_code == 204
        again = await client.post(path, json={"reply": "once"})
        assert again.json()["answeredBy"] == "ada"


def raising(connection: HTTPConnection) -> str:
    if "x-user" not in connection.headers:
        raise HTTPException(401, "log in")
    return connection.headers["x-user"]


@pytest.mark.parametrize("authenticate", [by_header, raising])
async def test_a_ticket_opens_its_stream_without_the_function(authenticate: Authenticate) -> None:
    called: list[str] = []

    def counting(connection: HTTPConnection) -> Any:
        called.append(connection.url.path)
        return authenticate(connection)

    agents = create_app(authenticate=counting)
    async with agents.lifespan(), client_of(agents) as client:
        user = {"x-user": "ada"}
        await client.post("/v1/sessions/s", json={"agent": "mock"}, headers=user)
        path = "/v1/sessions/s/events/sse"
        body = {"scope": "events", "path": path}
        assert (await client.post("/v1/tickets", json=body)).status_code == 401
        ticket = (await client.post("/v1/tickets", json=body, headers=user)).json()["ticket"]
        called.clear()
        async with client.stream("GET", f"{path}?ticket={ticket}") as response:
            assert response.status_code == 200
        assert (await client.get(f"{path}?ticket=x")).status_code == 401
        assert called == []


async def test_health_without_credentials_says_that_the_server_answers() -> None:
    agents = create_app(authenticate=by_header)
    async with agents.lifespan(), client_of(agents) as client:
        assert (await client.get("/v1/health")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "needs token= or authenticate="),
        ({"token": ""}, "needs token= or authenticate="),
        ({"token": "x", "no_token": True}, "no_token"),
        ({"token": "x", "fs_roots": "/tmp"}, "fs_roots"),
        ({"token": "x", "cors_allow_origins": ["*"], "cors_allow_credentials": True}, "every site"),
        ({"token": "x", "store": "bogus"}, "bogus"),
    ],
)
def test_what_cannot_be_mounted_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises((ValueError, InvalidRequestError), match=why):
        create_app(**options)


async def test_agents_inherit_no_secrets_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    agents = create_app(token=TOKEN)
    async with agents.lifespan(), client_of(agents, **BEARER) as client:
        ran = await client.post("/v1/processes/run", json={"command": "env"})
        assert "PATH=" in ran.json()["stdout"]
        assert "hunter2" not in ran.json()["stdout"]


async def test_a_server_that_is_down_is_a_lost_connection_of_the_sdk() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    async with SandboxAgent.connect(transport=ASGITransport(broken), skip_health_check=True) as sdk:
        with pytest.raises(ConnectionLostError, match="broken"):
            await sdk.get_health()


async def test_an_application_that_goes_on_is_cancelled_when_its_transport_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(asgi, "CLOSE_SECONDS", 0.01)
    cancelled = asyncio.Event()
    async with httpx2.AsyncClient(transport=ASGITransport(endless)) as client:
        async with client.stream("GET", "http://test/"):
            pass
        assert not cancelled.is_set()
    assert cancelled.is_set()


async def test_a_reader_ends_when_its_transport_is_closed() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    client = httpx2.AsyncClient(transport=ASGITransport(endless), timeout=None)
    reads = anyio.Event()

    async def read() -> None:
        async with client.stream("GET", "http://test/") as response:
            async for _ in response.aiter_raw():
                reads.set()

    reading = asyncio.ensure_future(read())
    with anyio.fail_after(TIMEOUT):
        await reads.wait()
        await client.aclose()
        with pytest.raises(httpx2.ReadError, match="closed"):
            await reading


async def test_health_is_answered_without_credentials_if_the_function_refuses_them() -> None:
    agents = create_app(authenticate=forbidding)
    async with agents.lifespan(), client_of(agents) as client:
        assert (await client.get("/v1/health")).json() == {"status": "ok"}
        assert (await client.get("/v1/health", headers={"Authorization": "Bearer no"})).status_code == 418
