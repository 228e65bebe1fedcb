"""Sandboxes from images that lack the server, on real engines: it is installed, once per image."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import anyio
import pytest

from sandbox_agent import SandboxAgentError
from sandbox_agent.providers.engine import install
from sandbox_agent.providers.engine.build import archive_files
from sandbox_agent.providers.engine.install import INSTALL_LABEL, installed_image
from sandbox_agent.testing.providers import raw_id_of, run_command
from tests.sandboxes.test_egress import GET
from tests.sandboxes.test_engine_egress import gateway, run_python
from tests.sandboxes.test_engines import sandboxed
from tests.support.engines import BASE, Engine
from tests.support.package_index import Requests, package_index

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]

PASSWORD = "a-password-of-the-index"


@pytest.fixture
async def index(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Requests]:
    """A package index that containers reach, and what is requested there. Its URL has a password."""
    address = await gateway(engine)
    with package_index(address) as (url, requested):
        parts = urlsplit(url)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:{PASSWORD}@{parts.netloc}{parts.path}")
        monkeypatch.setenv("PIP_TRUSTED_HOST", address)
        yield requested


@pytest.fixture
async def bare(engine: Engine) -> AsyncGenerator[str]:
    """An image with Python and without the server."""
    yield BASE
    image_id = await engine.api.find_image(BASE)
    assert image_id is not None
    if await engine.api.find_image(installed_image(image_id)) is not None:
        params = {"force": "true"}
        await engine.api.request("DELETE", f"/images/{installed_image(image_id)}", params=params)
    assert await engine.api.list_containers(INSTALL_LABEL) == []


async def test_an_image_without_the_server_gets_it_once(engine: Engine, bare: str, index: Requests) -> None:
    async with sandboxed(engine, image=bare) as (sdk, session):
        assert (await run_command(session, "id -u; pwd")).split() == ["1000", "/workspace", "[0]"]
        found = await run_command(session, "grep -E 'Cap|NoNewPrivs' /proc/self/status")
        assert {line.split(":\t")[1] for line in found.splitlines()[:-1]} == {"0000000000000000", "1"}
        # What was installed belongs to root, and the index and its password are not in the image.
        assert not (await run_command(session, "touch /opt/sandbox-agent-py/x")).endswith("[0]")
        search = ["grep", "-rls", PASSWORD, "/opt", "/run", "/etc", "/root", "/tmp"]
        assert (await engine.api.execute(raw_id_of(sdk), search, user="0"))[1] == b""
    assert "sandbox-agent-py" in index  # it was looked for, and then came as a wheel
    index.clear()
    image_id = await engine.api.find_image(bare)
    shown = (await engine.api.request("GET", f"/images/{installed_image(str(image_id))}/json")).text
    assert PASSWORD not in shown
    async with sandboxed(engine, image=bare, read_only=True) as (sdk, _):
        assert (await sdk.get_health()).status == "ok"
    assert index == []


async def test_a_sandbox_from_such_an_image_reaches_the_allowed_hosts_only(
    engine: Engine, bare: str, index: Requests
) -> None:
    async with sandboxed(engine, image=bare, allow_hosts=["web.test"]) as (_, session):
        assert (await run_command(session, "ls /sys/class/net")).split() == ["lo", "[0]"]
        assert "403" in await run_python(session, GET, "https://example.com/")
    assert index


async def test_sandboxes_that_need_the_server_at_once_install_it_once(
    engine: Engine, bare: str, index: Requests
) -> None:
    async def use() -> str:
        async with sandboxed(engine, image=bare) as (_, session):
            return await run_command(session, "echo hello")

    assert await asyncio.gather(use(), use(), use()) == ["hello\n[0]"] * 3
    assert index.count("sandbox-agent-py") == 1


async def test_an_installation_that_is_cancelled_leaves_nothing(
    engine: Engine, bare: str, index: Requests
) -> None:
    creating = asyncio.ensure_future(engine.provider(image=bare).create())
    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(index.has_any.wait)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert await engine.containers() == []
    assert await engine.api.list_containers(INSTALL_LABEL) == []


async def test_what_a_killed_program_left_of_an_installation_is_removed(
    engine: Engine, bare: str, index: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = await engine.api.find_image(bare)
    name = installed_image(str(image_id)).replace(":", "-")
    body = {"Image": bare, "Cmd": ["true"], "Labels": {INSTALL_LABEL: bare}}
    await engine.api.request("POST", "/containers/create", params={"name": name}, body=body)
    monkeypatch.setattr(install, "_START_TIME", install.timedelta())
    async with sandboxed(engine, image=bare) as (sdk, _):
        assert (await sdk.get_health()).status == "ok"
    assert index


async def test_an_image_without_python_says_what_to_use(engine: Engine) -> None:
    image = "sandbox-agent-without-python:latest"
    dockerfile = f"FROM {BASE}\nRUN rm -rf /usr/bin/python3* /opt/sandbox-agent".encode()
    params = {"t": image, "rm": "true", "forcerm": "true", "networkmode": "host"}
    content = archive_files({"Dockerfile": dockerfile})
    async for _ in engine.api.stream_lines("/build", params=params, content=content):
        pass
    try:
        with pytest.raises(SandboxAgentError, match=r"no sandbox-agent server.*Python 3.11") as raised:
            await engine.provider(image=image).create()
        assert "--base sandbox-agent-without-python:latest" in str(raised.value)
        assert await engine.containers() == []
        assert await engine.api.list_containers(INSTALL_LABEL) == []
    finally:
        await engine.api.request("DELETE", f"/images/{image}", params={"force": "true"})
