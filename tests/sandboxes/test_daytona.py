"""daytona() with Daytona's own SDK, at a Daytona on loopback whose sandboxes run the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandbox_agent import DaytonaProvider, SandboxAgentError, SandboxDestroyedError, daytona
from tests.sandboxes.fakes.daytona import FakeDaytona
from tests.sandboxes.fakes.service import Box, Failure
from tests.sandboxes.remote_suite import METADATA, Make, RemoteSuite

pytest.importorskip("daytona", reason="DAYTONA NOT TESTED: its SDK is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]


class TestDaytona(RemoteSuite):
    fake = FakeDaytona
    title = "Daytona"
    variable = "DAYTONA_API_KEY"

    @staticmethod
    def provider_of(service: FakeDaytona, options: dict[str, Any]) -> DaytonaProvider:
        return daytona(client=service.client, **options)

    def renewal(self, raw_id: str, timeout: int) -> list[tuple[str, str, Any]]:
        return [
            ("GET", f"/api/sandbox/{raw_id}", None),
            ("POST", f"/api/sandbox/{raw_id}/last-activity", None),
        ]

    async def test_the_requests_to_the_service_are_these(self, make: Make, service: FakeDaytona) -> None:
        options = {"snapshot": "my-snapshot", "env": {"A": "1"}, "create": {"domain_allow_list": "a.example"}}
        provider = make(**options, timeout=90)
        raw_id = await provider.create()
        await provider.pause(raw_id)
        [listed] = await provider.list_sandboxes()
        await provider.reconnect(raw_id)
        await provider.destroy(raw_id)
        assert (listed.id, listed.image, listed.state) == (raw_id, "daytona-small", "stopped")
        method, path, body = service.requests[0]
        assert (method, path) == ("POST", "/api/sandbox")
        name = body.pop("name")
        assert name.startswith("sandbox-agent-")
        assert body == {
            "snapshot": "my-snapshot",
            "env": {"A": "1"},
            "labels": {**METADATA, "code-toolbox-language": "python"},
            "target": "us",
            "autoStopInterval": 2,
            "volumes": [],
            "domainAllowList": "a.example",
        }
        port = provider._agent_port  # pyright: ignore[reportPrivateUsage]
        sandbox = f"/api/sandbox/{raw_id}"
        assert service.requests[1:] == [
            ("GET", f"{sandbox}/ports/{port}/preview-url", None),
            ("GET", sandbox, None),
            ("POST", f"{sandbox}/stop", None),
            ("GET", sandbox, None),
            ("GET", "/api/sandbox", {"labels": '{"sandbox-agent": "1"}'}),
            ("GET", sandbox, None),
            ("POST", f"{sandbox}/start", None),
            ("GET", sandbox, None),
            ("DELETE", sandbox, None),
        ]

    async def test_an_image_is_built_with_its_native_options(self, make: Make, service: FakeDaytona) -> None:
        from daytona import Resources

        def choose(options: dict[str, Any]) -> dict[str, Any]:
            return {**options, "resources": Resources(cpu=2)}

        service.failures["create"] = Failure(400, 1)
        with pytest.raises(SandboxAgentError, match="status 400"):
            await make(image="python:3.12", create=choose).create()
        body = service.requests[0][2]
        assert body["buildInfo"]["dockerfileContent"] == "FROM python:3.12\n"
        assert body["cpu"] == 2
        assert {**body["labels"], **METADATA} == body["labels"]

    async def test_a_sandbox_that_two_programs_wake_at_once_is_there_for_both(
        self, make: Make, service: FakeDaytona
    ) -> None:
        provider = make()
        raw_id = await provider.create()
        await provider.pause(raw_id)
        service.failures["start"] = Failure(409, 1)
        await provider.reconnect(raw_id)
        assert service.failures["start"].times == 0
        assert await provider.get_token(raw_id)
        # Another conflict is an error.
        await provider.pause(raw_id)
        service.failures["start"] = Failure(500, 100)
        with pytest.raises(SandboxAgentError, match="made to fail with 500"):
            await provider.reconnect(raw_id)
        await provider.destroy(raw_id)

    async def test_a_snapshot_and_an_image_are_refused_together(self, make: Make) -> None:
        with pytest.raises(ValueError, match="not both"):
            make(snapshot="a", image="b")
        with pytest.raises(ValueError, match="'stop' or 'pause'"):
            make(pause="freeze")

    async def test_a_sandbox_of_the_users_name_is_not_destroyed_when_that_name_is_in_use(
        self, make: Make, service: FakeDaytona
    ) -> None:
        service.home.mkdir()
        service.boxes["theirs"] = Box({}, {}, name="mine")
        service.failures["create"] = Failure(409, 1)
        with pytest.raises(SandboxAgentError, match="status 409"):
            await make(create={"name": "mine"}).create()
        assert set(service.boxes) == {"theirs"}

    async def test_a_sandbox_without_a_token_is_not_one_of_this_package(
        self, make: Make, service: FakeDaytona, tmp_path: Path
    ) -> None:
        service.boxes["other"] = Box({}, {}, name="other")
        with pytest.raises(SandboxAgentError, match=r"lacks a file: .* created") as raised:
            await make().get_token("other")
        assert not isinstance(raised.value, SandboxDestroyedError)
