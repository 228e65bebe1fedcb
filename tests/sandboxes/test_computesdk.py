"""computesdk() with ComputeSDK's own SDK, at a gateway on loopback whose sandboxes run the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox_agent import ComputeSDKProvider, SandboxAgentError, SandboxDestroyedError, computesdk
from tests.sandboxes.fakes.computesdk import FakeComputeSDK
from tests.sandboxes.fakes.service import Box
from tests.sandboxes.remote_suite import METADATA, Make, RemoteSuite

pytest.importorskip("computesdk", reason="COMPUTESDK NOT TESTED: its SDK is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]


class TestComputeSDK(RemoteSuite):
    fake = FakeComputeSDK
    title = "ComputeSDK"
    variable = "COMPUTESDK_API_KEY"
    # It adds to what is left of the timeout: see below.
    has_timeout = False
    has_pause = False

    @pytest.fixture
    def service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeComputeSDK]:
        async def get_url(sandbox: Any, port: int) -> str:
            return f"{fake.url}/port/{sandbox.sandbox_id}/{port}"

        with self.running_fake(tmp_path) as fake:
            assert isinstance(fake, FakeComputeSDK)
            # The SDK's URLs are always those of preview.computesdk.com.
            monkeypatch.setattr("computesdk.sandbox.Sandbox.get_url", get_url)
            yield fake

    @staticmethod
    def provider_of(service: FakeComputeSDK, options: dict[str, Any]) -> ComputeSDKProvider:
        return computesdk(client=service.client, **options)

    async def test_the_requests_to_the_service_are_these(self, make: Make, service: FakeComputeSDK) -> None:
        provider = make(template="my-template", env={"A": "1"})
        raw_id = await provider.create()
        [box_id] = service.boxes
        await provider.reconnect(raw_id)
        await provider.destroy(raw_id)
        find = ("POST", "/v1/sandboxes/find", {"name": raw_id, "namespace": "default"})
        assert service.requests == [
            (
                "POST",
                "/v1/sandboxes",
                {
                    "timeout": 3_600_000,
                    "templateId": "my-template",
                    "metadata": METADATA,
                    "envs": {"A": "1"},
                    "name": raw_id,
                },
            ),
            find,
            find,
            ("DELETE", f"/v1/sandboxes/{box_id}", None),
        ]

    async def test_what_has_passed_of_the_timeout_is_added_while_the_sandbox_is_used(
        self, make: Make, service: FakeComputeSDK, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr("sandbox_agent.providers.renewing_transport.clock", lambda: now)
        provider = make(timeout=600)
        raw_id = await provider.create()
        url = await provider.get_url(raw_id)
        async with httpx2.AsyncClient(transport=await provider.get_transport(raw_id)) as client:
            for passed in (10, 151, 200):
                now += passed
                assert (await client.get(f"{url}/v1/health")).status_code == 200
        await provider.destroy(raw_id)
        added = [body["duration"] for _, path, body in service.requests if path.endswith("/extend")]
        assert added == [161_000, 200_000]

    async def test_a_sandbox_without_a_token_is_not_one_of_this_package(
        self, make: Make, service: FakeComputeSDK
    ) -> None:
        service.boxes["other"] = Box({}, {}, name="other")
        with pytest.raises(SandboxAgentError, match="lacks a file") as raised:
            await make().get_token("other")
        assert not isinstance(raised.value, SandboxDestroyedError)

    async def test_a_missing_configuration_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("COMPUTESDK_API_KEY", raising=False)
        with pytest.raises(SandboxAgentError, match="Set COMPUTESDK_API_KEY"):
            await computesdk().reconnect("a")
        with pytest.raises(SandboxAgentError, match="does not list"):
            await computesdk(client={"api_key": "a", "provider": "e2b"}).list_sandboxes()


async def test_the_url_is_that_of_the_preview() -> None:
    from computesdk import Sandbox

    sandbox = Sandbox("cs-1", "https://box-1.sandbox.computesdk.com", "token", "e2b")
    assert await sandbox.get_url(2468) == "https://box-1-2468.preview.computesdk.com"
