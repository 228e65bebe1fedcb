"""sprites() at a Sprites on loopback whose sandboxes run the script and the server."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox_agent import SandboxAgent, SandboxAgentError, SpritesProvider, sprites
from sandbox_agent.providers.start_script import package_version
from sandbox_agent.testing.providers import run_command
from tests.sandboxes.fakes.service import Box
from tests.sandboxes.fakes.sprites import API_KEY, FakeSprites
from tests.sandboxes.remote_suite import Make, RemoteSuite

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]


class TestSprites(RemoteSuite):
    fake = FakeSprites
    title = "Sprites"
    variable = "SPRITE_TOKEN"
    # A sprite sleeps by itself, and has no timeout.
    has_timeout = False
    has_pause = False

    @staticmethod
    def provider_of(service: FakeSprites, options: dict[str, Any]) -> SpritesProvider:
        return sprites(url=service.url, api_key=API_KEY, **options)

    async def test_the_requests_to_the_service_are_these(self, make: Make, service: FakeSprites) -> None:
        provider = make(
            env={"A": "secret"}, create={"config": {"ram_mb": 4096}, "labels": ["mine"]}, agent_port=8080
        )
        raw_id = await provider.create()
        await provider.pause(raw_id)
        service.boxes["other"] = Box({}, {})
        [listed] = await provider.list_sandboxes()
        await provider.destroy(raw_id)
        assert (listed.id, listed.state, listed.created) == (raw_id, "running", "2026-01-02T03:04:05Z")
        sprite = f"/v1/sprites/{raw_id}"
        folder = service.home / ".sandbox-agent"
        command = f". {folder}/env.sh && sh {folder}/start.sh; exec sleep infinity"
        assert service.requests == [
            (
                "POST",
                "/v1/sprites",
                {
                    "name": raw_id,
                    "config": {"ram_mb": 4096},
                    "labels": ["mine", "sandbox-agent", f"sandbox-agent-{package_version()}"],
                    "url_settings": {"auth": "public"},
                },
            ),
            (
                "PUT",
                f"{sprite}/services/sandbox-agent",
                {"cmd": "sh", "args": ["-c", command], "http_port": 8080},
            ),
            ("GET", sprite, None),
            ("GET", sprite, None),
            ("GET", "/v1/sprites", None),
            ("GET", "/v1/sprites", None),
            ("DELETE", sprite, None),
        ]

    async def test_a_sprite_that_slept_continues_with_its_files(
        self, make: Make, service: FakeSprites
    ) -> None:
        async with SandboxAgent.start(sandbox=make(env={"GREETING": "hello"})) as sdk:
            sandbox_id = str(sdk.sandbox_id)
            session = await sdk.create_session(agent="shell")
            await run_command(session, "echo kept > ~/file")
            await sdk.pause_sandbox()
        await service.sleep(sandbox_id.partition("/")[2])
        async with SandboxAgent.start(sandbox=make(), sandbox_id=sandbox_id) as sdk:
            session = await sdk.create_session(agent="shell")
            assert "kept hello" in await run_command(session, 'echo "$(cat ~/file) $GREETING"')
            await sdk.destroy_sandbox()

    async def test_the_token_is_needed_and_there_is_no_timeout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SPRITE_TOKEN", raising=False)
        with pytest.raises(SandboxAgentError, match="set SPRITE_TOKEN"):
            await sprites().reconnect("a")
        with pytest.raises(TypeError, match="unexpected keyword argument 'timeout'"):
            sprites(timeout=60)
