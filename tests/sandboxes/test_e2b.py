"""e2b() with E2B's own SDK, at an E2B on loopback whose sandboxes run the start script and the server."""

from __future__ import annotations

from typing import Any
from unittest.mock import ANY

import pytest

from sandbox_agent import E2BProvider, e2b
from tests.sandboxes.fakes.e2b import FakeE2B
from tests.sandboxes.remote_suite import METADATA, Make, StartSuite

pytest.importorskip("e2b", reason="E2B NOT TESTED: its SDK is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]


class TestE2B(StartSuite):
    fake = FakeE2B
    title = "E2B"
    variable = "E2B_API_KEY"

    @staticmethod
    def provider_of(service: FakeE2B, options: dict[str, Any]) -> E2BProvider:
        return e2b(client=service.client, **options)

    def renewal(self, raw_id: str, timeout: int) -> list[tuple[str, str, Any]]:
        return [("POST", f"/sandboxes/{raw_id}/timeout", {"timeout": timeout})]

    async def test_the_requests_to_the_service_are_these(self, make: Make, service: FakeE2B) -> None:
        options = {"template": "my-template", "env": {"A": "1"}, "create": {"allow_internet_access": False}}
        provider = make(**options)
        raw_id = await provider.create()
        await provider.pause(raw_id)
        [listed] = await provider.list_sandboxes()
        await provider.reconnect(raw_id)
        await provider.destroy(raw_id)
        assert (listed.id, listed.image, listed.state) == (raw_id, "base", "paused")
        query = "?metadata=sandbox-agent%3D1"
        assert service.requests == [
            (
                "POST",
                "/v2/sandboxes",
                {
                    "templateID": "my-template",
                    "timeout": 3600,
                    "autoPause": True,
                    "allow_internet_access": False,
                    "metadata": {**METADATA, "sandbox-agent-name": ANY},
                    "envVars": {"A": "1"},
                },
            ),
            ("POST", f"/sandboxes/{raw_id}/pause", {}),
            ("GET", f"/v2/sandboxes{query}", None),
            ("POST", f"/v2/sandboxes/{raw_id}/connect", {"timeout": 3600}),
            ("DELETE", f"/sandboxes/{raw_id}", None),
        ]

    async def test_a_function_chooses_the_native_arguments(self, make: Make, service: FakeE2B) -> None:
        def choose(options: dict[str, Any]) -> dict[str, Any]:
            return {**options, "timeout": 60, "metadata": {"team": "a"}}

        provider = make(create=choose)
        await provider.destroy(await provider.create())
        body = service.requests[0][2]
        assert body["timeout"] == 60
        assert body["metadata"] == {"team": "a", **METADATA, "sandbox-agent-name": ANY}
