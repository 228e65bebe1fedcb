"""The server where sniffio is installed: then anyio finds the loop of tasks, but not that of callbacks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent
from tests.support.servers import our_server

pytestmark = pytest.mark.anyio


async def test_a_request_of_a_real_server_expires(tmp_path: Path) -> None:
    assert find_spec("sniffio") is not None
    with anyio.fail_after(30), our_server(tmp_path) as server:
        async with SandboxAgent.connect(server.url) as sdk:
            await sdk.sessions.create(
                "s", agent="mock", permission_mode="ask", permission_timeout_seconds=0.1
            )
            types = [event.type async for event in sdk.sessions.stream_turn("s", "permission")]
    assert "permission.resolved" in types
    assert types[-1] == "turn.ended"
