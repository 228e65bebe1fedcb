"""A server without a token on loopback: pages of other sites can't use it, other programs can."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.server.talk import envelope
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

ALLOWED = "https://app.example"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options = ["--allow-host", "Dev.Box", "--cors-allow-origin", ALLOWED]
    with our_server(tmp_path_factory.mktemp("local"), *options) as running:
        yield running


async def _status(server: ServerProcess, method: str = "GET", path: str = "/v1/acp", **headers: str) -> int:
    async with httpx2.AsyncClient(base_url=server.own_url) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await client.request(method, path, headers=named)).status_code


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:2468", 200),
        ("localhost.", 200),
        ("127.0.0.1:80", 200),
        ("127.8.8.8", 200),
        ("[::1]:2468", 200),
        ("dev.box:2468", 200),
        ("evil.example", 421),
        ("evil.example:2468", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
async def test_the_host_must_be_this_machine(server: ServerProcess, host: str, status: int) -> None:
    assert await _status(server, host=host) == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),  # another server of this machine
        ({"origin": "http://localhost:2468", "host": "localhost:2468"}, 200),
        ({"origin": ALLOWED}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "cross-site", "origin": ALLOWED}, 200),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
    ],
)
async def test_pages_of_other_sites_are_refused(
    server: ServerProcess, headers: dict[str, str], status: int
) -> None:
    assert await _status(server, **headers) == status


@pytest.mark.parametrize("path", ["/v1/sessions/s/terminate", "/v1/sessions/s/cancel"])
async def test_a_post_without_a_body_of_another_site_has_no_effect(server: ServerProcess, path: str) -> None:
    assert await _status(server, "POST", path, origin="http://evil.example") == 403
    assert await _status(server, "POST", path, host="evil.example") == 421
    assert await _status(server, "POST", path) == 404


async def test_envelopes_are_checked_too(server: ServerProcess) -> None:
    async with httpx2.AsyncClient(base_url=server.own_url) as client:
        path = "/v1/acp/checked"
        body = envelope("initialize", {"protocolVersion": 1}, 1)
        assert (await client.post(path, params={"agent": "mock"}, json=body)).status_code == 200
        again = envelope("session/list", {}, 2)
        assert (await client.post(path, json=again)).status_code == 200
        for headers, status in (
            ({"host": "evil.example"}, 421),
            ({"origin": "http://evil.example"}, 403),
            ({"sec-fetch-site": "cross-site"}, 403),
        ):
            assert (await client.post(path, json=again, headers=headers)).status_code == status
        await client.delete(path)


async def test_a_server_with_a_token_answers_any_host(tmp_path: Path) -> None:
    with our_server(tmp_path, token="a-long-secret") as server:
        headers = {
            "authorization": "Bearer a-long-secret",
            "host": "3000-x.e2b.app",
            "origin": "http://x.example",
        }
        assert await _status(server, **headers) == 200


async def test_no_token_on_another_address_answers_any_host_and_warns(tmp_path: Path) -> None:
    with our_server(tmp_path, "--host", "0.0.0.0", "--no-token") as server:
        assert await _status(server, host="3000-x.e2b.app") == 200
        assert server.log.read_text().count("no token: everything that reaches 0.0.0.0") == 1


def test_credentials_for_every_origin_are_refused_at_the_start() -> None:
    command = [sys.executable, "-m", "sandbox_agent", "server", "--port", "0", "--store", "memory"]
    options = ["--cors-allow-origin", "*", "--cors-allow-credentials"]
    found = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert found.returncode != 0
    assert "name the origins" in found.stderr
