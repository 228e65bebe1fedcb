"""Tokens and origins: who gets in, what a browser may do, and that no token is ever written down."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest

from sandbox_agent.server.http import auth
from sandbox_agent.server.tickets import Tickets
from tests.server.talk import client_of, envelope, talk
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

TOKEN = "s3cret-token-0123456789"
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """A server with a token and cross-origin rules."""
    options = ("--cors-allow-origin", ORIGIN, "--cors-allow-credentials", "--log-level", "debug")
    with our_server(tmp_path_factory.mktemp("guarded"), *options, token=TOKEN) as running:
        yield running


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer Bearer {TOKEN}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/health", "/", "/v1/acp", "/nope"])
async def test_a_request_without_the_token_is_a_401(
    guarded: ServerProcess, path: str, header: str | None
) -> None:
    async with httpx2.AsyncClient(base_url=guarded.url) as client:
        response = await client.get(path, headers={} if header is None else {"authorization": header})
    if (path, header) == ("/v1/health", None):  # a load balancer asks
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        return
    assert response.status_code == 401
    problem = response.json()
    assert problem["type"] == "urn:sandbox-agent:error:token_invalid"
    assert problem["title"] == "Token Invalid"
    assert response.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in response.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_request_with_the_token_goes_through(guarded: ServerProcess, scheme: str) -> None:
    async with httpx2.AsyncClient(base_url=guarded.url) as client:
        for path in ("/v1/health", "/", "/v1/acp", "/v1/openapi.json"):
            response = await client.get(path, headers={"authorization": f"{scheme} {TOKEN}"})
            assert response.status_code == 200


async def test_the_token_in_the_query_lets_nobody_in_over_http(guarded: ServerProcess) -> None:
    async with httpx2.AsyncClient(base_url=guarded.url) as client:
        response = await client.get("/v1/acp", params={"access_token": TOKEN})
    assert response.status_code == 401


async def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, token: bytes) -> bool:
        compared.append((given, token))
        return given == token

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    async def app(_scope: object, _receive: object, _send: object) -> None:
        sent.append("through")

    guard = auth.BearerAuth(app, TOKEN, Tickets({}))
    headers = [(b"authorization", b"Bearer nope")]
    scope = {"type": "http", "path": "/", "query_string": b"", "headers": headers}
    await guard(scope, _never, send)  # pyright: ignore[reportArgumentType] - as much of ASGI as it looks at
    assert compared == [(b"nope", TOKEN.encode())]
    assert "through" not in sent


async def _never() -> dict[str, object]:
    raise AssertionError("nobody reads the body")


async def test_a_preflight_needs_no_token_and_allows_what_was_set(guarded: ServerProcess) -> None:
    async with httpx2.AsyncClient(base_url=guarded.url) as client:
        response = await client.options(
            "/v1/acp/x",
            headers={
                "origin": ORIGIN,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization, content-type, sandbox-agent-client",
            },
        )
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert response.headers["access-control-allow-credentials"] == "true"
        assert "POST" in response.headers["access-control-allow-methods"]
        allowed = response.headers["access-control-allow-headers"].lower()
        assert "authorization" in allowed
        assert "sandbox-agent-client" in allowed
        refused = await client.options(
            "/v1/acp/x", headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
        )
        assert "access-control-allow-origin" not in refused.headers


async def test_answers_to_a_browser_name_its_origin_also_when_they_are_errors(guarded: ServerProcess) -> None:
    async with client_of(guarded, origin=ORIGIN) as client:
        for path, status in (("/v1/health", 200), ("/v1/acp/none", 404)):
            response = await client.get(path)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == ORIGIN
    async with httpx2.AsyncClient(base_url=guarded.url, headers={"origin": ORIGIN}) as client:
        response = await client.get("/v1/acp")
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == ORIGIN


async def test_a_browser_may_read_the_epoch(guarded: ServerProcess) -> None:
    async with (
        talk(guarded) as talking,
        talking.client.stream(
            "GET", talking.path, headers={"origin": ORIGIN, "accept": "text/event-stream"}
        ) as response,
    ):
        assert "sandbox-agent-epoch" in response.headers["access-control-expose-headers"].lower()


async def test_without_origins_there_is_no_cors(server: ServerProcess) -> None:
    async with client_of(server, origin=ORIGIN) as client:
        response = await client.get("/v1/health")
        assert "access-control-allow-origin" not in response.headers
        preflight = await client.options("/v1/acp", headers={"access-control-request-method": "GET"})
        assert preflight.status_code == 403
        assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("by", ["option", "variable"])
async def test_the_token_is_in_no_log_and_no_answer(
    tmp_path_factory: pytest.TempPathFactory, log_format: str, by: str
) -> None:
    options = ["--log-level", "debug", "--log-format", log_format]
    folder = tmp_path_factory.mktemp("logs")
    if by == "option":
        server = our_server(folder, *options, token=TOKEN)
    else:
        port = our_server(folder).port
        command = [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--port", str(port), *options]
        env = {"SANDBOX_AGENT_TOKEN": TOKEN, "XDG_DATA_HOME": str(folder / "data")}
        server = ServerProcess(command, port=port, log=folder / "server.log", env=env, token=TOKEN)
    with server:
        # an agent that says the token where it can: in its output, its errors, and its death
        script = (
            "import os, sys\n"
            "sys.stdin.readline()\n"
            f'print("not json {TOKEN}", flush=True)\n'
            f'raise SystemExit("{TOKEN}")\n'
        )
        put_launcher(folder / "data", "leaky", [sys.executable, "-c", script])
        async with talk(server) as talking:
            await talking.prompt(f"echo {TOKEN}")
            await talking.post(envelope("x", {}, 1), agent=TOKEN)
            await talking.client.get(f"/v1/{TOKEN}", params={"access_token": TOKEN})
            await talking.client.get("/v1/health", headers={"authorization": f"Bearer {TOKEN}x"})
            await talking.client.post(
                "/v1/acp/" + TOKEN, params={"agent": "leaky"}, json=envelope("m", {}, 1)
            )
            await talking.client.delete("/v1/acp/" + TOKEN)
        assert server.stop() == 0
    log = (folder / "server.log").read_text()
    assert "mock" in log
    assert TOKEN not in log


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--host", "0.0.0.0"], 64, "--token"),
        (["--host", "::"], 64, "--no-token"),
        (["--host", ""], 64, "--token"),
        (["--host", "192.0.2.1"], 64, "--token"),
        (["--token", ""], 64, "empty"),
        (["--token", "  ", "--host", "0.0.0.0"], 64, "empty"),
        (["--no-token", "--host", "192.0.2.1"], 1, "can't listen on 192.0.2.1"),
        (["--no-token", "--host", "no such host"], 1, "can't listen"),
        (["--no-token", "--store", "mysql://host/db"], 64, "sqlite:PATH"),
        (["--port", "99999"], 2, "--port"),
    ],
)
def test_options_that_cannot_be_are_refused_with_what_to_do(
    tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    command = [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--port", "0", *options]
    env = {"PATH": "/usr/bin:/bin", "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_port_that_is_taken_is_said_in_one_line(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{server.port}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


async def test_an_agent_does_not_see_the_servers_token(tmp_path: Path) -> None:
    seen = tmp_path / "environment"
    # it answers when the file is there
    script = f'env > {seen}; read line; echo {{\\"id\\":1,\\"result\\":null}}; cat'
    put_launcher(tmp_path / "data", "spy", ["sh", "-c", script])
    variables = {"SANDBOX_AGENT_TOKEN": TOKEN, "SEEN_BY_AGENTS": "yes"}
    with our_server(tmp_path, token=TOKEN, env=variables) as server:
        async with talk(server, open_=False) as talking:
            response = await talking.post(envelope("hello", request_id=1), agent="spy")
    assert response.status_code == 200
    text = seen.read_text()
    assert "SEEN_BY_AGENTS=yes" in text
    assert TOKEN not in text


@pytest.mark.parametrize("token", ["a", "seven77"])
def test_a_token_that_can_be_guessed_is_refused_at_the_start(token: str) -> None:
    command = [sys.executable, "-m", "sandbox_agent", "server", "--port", "0", "--store", "memory"]
    found = subprocess.run([*command, "--token", token], capture_output=True, text=True, timeout=60)
    assert found.returncode != 0
    assert "at least 8" in found.stderr
