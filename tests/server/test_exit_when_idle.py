"""A server with --exit-when-idle ends when nothing uses it."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent import SandboxAgent, SandboxDestroyedError, local
from sandbox_agent.wire.api import IDLE_EXIT_CODE
from tests.support.servers import SERVER, free_port

pytestmark = pytest.mark.anyio


async def test_a_server_that_nothing_uses_ends_with_its_own_exit_code() -> None:
    command = [*SERVER, "--port", str(free_port()), "--store", "memory", "--exit-when-idle", "0.2"]
    with anyio.fail_after(30):
        done = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT)
    assert done.returncode == IDLE_EXIT_CODE
    assert b"no turn ran and no client was connected" in done.stdout


async def test_a_server_stays_while_a_client_is_connected_and_ends_afterwards(tmp_path: Path) -> None:
    provider = local(log=tmp_path / "log", args=["--exit-when-idle", "0.1"])
    async with SandboxAgent.start(sandbox=provider) as sdk:
        session = await sdk.create_session(agent="mock")
        raw_id = str(sdk.sandbox_id).removeprefix("local/")
        pid = provider.pid(raw_id)
        # Each of its checks finds the session's event stream.
        await anyio.sleep(1.5)
        await session.prompt("echo still here")
        assert provider.pid(raw_id) == pid
    with anyio.fail_after(30), contextlib.suppress(httpx2.TransportError):
        while True:
            async with httpx2.AsyncClient() as client:
                await client.get(f"http://{raw_id}/v1/health", headers={"Connection": "close"})
            await anyio.sleep(0.5)
    await provider.destroy(raw_id)
    with pytest.raises(SandboxDestroyedError):
        await provider.reconnect(raw_id)
