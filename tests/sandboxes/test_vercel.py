"""vercel() with Vercel's own SDK, at a Vercel on loopback whose sandboxes run the script and the server."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from sandbox_agent import SandboxAgentError, VercelProvider, vercel
from tests.sandboxes.fakes.vercel import FakeVercel
from tests.sandboxes.remote_suite import METADATA, Make, RemoteSuite

pytest.importorskip("vercel.sandbox", reason="VERCEL NOT TESTED: its SDK is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]


class TestVercel(RemoteSuite):
    fake = FakeVercel
    title = "Vercel"
    variable = "VERCEL_TOKEN"
    # It adds to what is left of the timeout: see below.
    has_timeout = False

    @staticmethod
    def provider_of(service: FakeVercel, options: dict[str, Any]) -> VercelProvider:
        return vercel(client=service.client, **options)

    async def test_the_requests_to_the_service_are_these(self, make: Make, service: FakeVercel) -> None:
        provider = make(image="my-image:1", env={"A": "1"}, create={"snapshot_expiration": 86_400})
        raw_id = await provider.create()
        service.requests[1:] = [
            request for request in service.requests[1:] if request[1] != f"/v2/sandboxes/{raw_id}"
        ]
        session = service.boxes[raw_id].token
        await provider.pause(raw_id)
        [listed] = await provider.list_sandboxes()
        await provider.reconnect(raw_id)
        await provider.destroy(raw_id)
        assert (listed.id, listed.state) == (raw_id, "stopped")
        assert listed.created == "2023-11-14T22:13:20+00:00"
        port = provider._agent_port  # pyright: ignore[reportPrivateUsage]
        sandbox = f"/v2/sandboxes/{raw_id}"
        found = {"project": "prj_1", "sortBy": "createdAt", "sortOrder": "desc", "tags": "sandbox-agent:1"}
        assert service.requests == [
            (
                "POST",
                "/v3/sandboxes",
                {
                    "projectId": "prj_1",
                    "name": raw_id,
                    "image": "my-image:1",
                    "ports": [port],
                    "timeout": 3_600_000,
                    "persistent": True,
                    "env": {"A": "1"},
                    "tags": METADATA,
                    "snapshotExpiration": 86_400_000,
                },
            ),
            ("GET", sandbox, "false"),
            ("POST", f"/v2/sandboxes/sessions/{session}/stop", {}),
            ("GET", "/v2/sandboxes", {**found, "teamId": "team_1"}),
            ("GET", sandbox, "false"),
            ("GET", sandbox, "true"),
            ("GET", sandbox, "false"),
            ("GET", sandbox, "false"),
            ("DELETE", sandbox, {"teamId": "team_1", "projectId": "prj_1"}),
        ]

    async def test_what_the_timeout_lacks_is_added_while_the_sandbox_is_used(
        self, make: Make, service: FakeVercel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = make(timeout=600)
        raw_id = await provider.create()
        box = service.boxes[raw_id]
        box.started -= 200
        now = 1000.0
        monkeypatch.setattr("sandbox_agent.providers.renewing_transport.clock", lambda: now)
        url = await provider.get_url(raw_id)
        async with httpx2.AsyncClient(transport=await provider.get_transport(raw_id)) as client:
            for _ in range(3):  # the third renewal finds nothing to add
                assert (await client.get(f"{url}/v1/health")).status_code == 200
                now += 151
        await provider.destroy(raw_id)
        [added] = [body["duration"] for _, path, body in service.requests if path.endswith("extend-timeout")]
        assert 200_000 <= added < 290_000

    async def test_a_port_that_is_not_published_is_named(self, make: Make) -> None:
        provider = make()
        raw_id = await provider.create()
        with pytest.raises(SandboxAgentError, match="does not publish port 1:"):
            await make(agent_port=1).get_url(raw_id)
        await provider.destroy(raw_id)

    async def test_missing_credentials_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("VERCEL_TOKEN", "VERCEL_OIDC_TOKEN", "VERCEL_TEAM_ID", "VERCEL_PROJECT_ID"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(SandboxAgentError, match="VERCEL_TOKEN"):
            await vercel().reconnect("a")
