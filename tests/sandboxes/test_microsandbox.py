"""microsandbox() at the boundary of its module, with microVMs that are processes of this machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("microsandbox", reason="MICROSANDBOX NOT TESTED: it is not installed")

from sandbox_agent import MicrosandboxProvider, SandboxAgentError, microsandbox
from tests.sandboxes.fakes.microsandbox import FakeMicrosandbox
from tests.sandboxes.fakes.service import Failure
from tests.sandboxes.remote_suite import METADATA, Make, RemoteSuite

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]

ASK_THE_REAL_ONE = """
import asyncio
from sandbox_agent import SandboxDestroyedError, microsandbox

async def main():
    provider = microsandbox()
    assert await provider.list_sandboxes() == []
    await provider.destroy("none")
    try:
        await provider.reconnect("none")
    except SandboxDestroyedError:
        print("destroyed")

asyncio.run(main())
"""


class TestMicrosandbox(RemoteSuite):
    fake = FakeMicrosandbox
    title = "microsandbox"
    variable = ""

    # This machine has no keys, and asks for no patience.
    test_a_refusal_says_what_to_do = None  # pyright: ignore[reportAssignmentType]
    test_a_request_that_the_service_delays_is_tried_again_and_not_forever = None  # pyright: ignore[reportAssignmentType]

    @pytest.fixture
    def service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMicrosandbox]:
        with self.running_fake(tmp_path) as fake:
            assert isinstance(fake, FakeMicrosandbox)
            monkeypatch.setattr("microsandbox.Sandbox", fake)
            yield fake

    @staticmethod
    def provider_of(service: FakeMicrosandbox, options: dict[str, Any]) -> MicrosandboxProvider:
        return microsandbox(**options)

    def renewal(self, raw_id: str, timeout: int) -> list[tuple[str, str, Any]]:
        return [("touch", raw_id, {})]

    async def test_the_calls_of_the_library_are_these(self, make: Make, service: FakeMicrosandbox) -> None:
        provider = make(image="my/image", env={"A": "secret"}, create={"memory": 4096, "labels": {"a": "b"}})
        raw_id = await provider.create()
        [listed] = await provider.list_sandboxes()
        assert (listed.id, listed.image, listed.state) == (raw_id, "image", "running")
        assert listed.created == "2023-11-14T22:13:20+00:00"
        await provider.pause(raw_id)
        await provider.reconnect(raw_id)
        await provider.destroy(raw_id)
        call, name, options = service.requests[0]
        [binding] = options.pop("ports")
        assert (binding.bind, binding.guest_port) == ("127.0.0.1", service_port(provider))
        assert (call, name) == ("create", raw_id)
        assert options == {
            "image": "my/image",
            "memory": 4096,
            "cpus": 2,
            "idle_timeout": 3600.0,
            "labels": {"a": "b", **METADATA},
            "detached": True,
        }
        assert service.requests[1:] == [
            ("stop", raw_id, {}),
            ("start", raw_id, {"detached": True}),
            ("destroy", raw_id, {"force": True}),
        ]

    async def test_an_error_of_the_library_is_shown_and_nothing_is_left(
        self, make: Make, service: FakeMicrosandbox
    ) -> None:
        service.failures["create"] = Failure(400, 1)
        with pytest.raises(SandboxAgentError, match="InvalidConfigError: made to fail with 400"):
            await make().create()
        assert service.boxes == {}

    async def test_another_port_than_that_of_the_sandbox_is_refused(
        self, make: Make, service: FakeMicrosandbox
    ) -> None:
        provider = make()
        raw_id = await provider.create()
        with pytest.raises(SandboxAgentError, match="does not publish port 1"):
            await make(agent_port=1).get_url(raw_id)
        await provider.destroy(raw_id)


def service_port(provider: Any) -> int:
    return provider._agent_port


async def test_the_real_library_knows_no_sandbox_that_was_not_created(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", ASK_THE_REAL_ONE),
        env={**os.environ, "MSB_HOME": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert (await process.communicate())[0] == b"destroyed\n"
