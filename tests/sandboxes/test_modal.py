"""modal() with a stand-in for Modal's module, whose calls are held against the real signatures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent import ModalProvider, SandboxAgentError, modal
from sandbox_agent.providers.service import Service
from tests.sandboxes.fakes.service import Failure
from tests.sandboxes.remote_suite import METADATA, Make, RemoteSuite

sdk = pytest.importorskip("modal", reason="MODAL NOT TESTED: its SDK is not installed")
from tests.sandboxes.fakes.modal import FakeModal  # noqa: E402 - it needs the SDK

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]


class TestModal(RemoteSuite):
    fake = FakeModal
    title = "Modal"
    variable = "MODAL_TOKEN_ID"
    has_timeout = False
    has_pause = False

    @pytest.fixture
    def service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModal]:
        with self.running_fake(tmp_path) as fake:
            assert isinstance(fake, FakeModal)
            monkeypatch.setitem(sys.modules, "modal", fake.module())
            yield fake

    @staticmethod
    def provider_of(service: FakeModal, options: dict[str, Any]) -> ModalProvider:
        return modal(**options)

    async def test_the_calls_of_the_sdk_are_these(self, make: Make, service: FakeModal) -> None:
        provider = make(app="my-app", env={"A": "1"}, create={"cpu": 2.0})
        assert await provider.list_sandboxes() == []
        service.requests.clear()
        raw_id = await provider.create()
        [listed] = await provider.list_sandboxes()
        await provider.destroy(raw_id)
        assert (listed.id, listed.state) == (raw_id, "running")
        names = [call for call, _, _ in service.requests]
        assert names[:2] == ["App.lookup", "Sandbox.create"]
        assert names[-5:] == [
            "Sandbox.list",
            "Sandbox.get_tags",
            "Sandbox.from_name",
            "Sandbox.poll",
            "Sandbox.terminate",
        ]
        _, words, options = service.requests[1]
        app, image = options.pop("app"), options.pop("image")
        assert words == "('sleep', 'infinity')"
        assert app.app_id == "ap-my-app"
        assert image == ("node:24-trixie-slim", {"add_python": "3.12"}, ("ca-certificates", "curl", "git"))
        assert options == {
            "name": raw_id,
            "env": {"A": "1"},
            "timeout": 86_400,
            "idle_timeout": 3600,
            "encrypted_ports": [provider._agent_port],  # pyright: ignore[reportPrivateUsage]
            "tags": {**METADATA, "sandbox-agent-name": raw_id},
            "cpu": 2.0,
            "client": None,
        }

    async def test_a_port_that_is_not_published_says_what_to_pass(self, make: Make) -> None:
        provider = make()
        raw_id = await provider.create()
        with pytest.raises(SandboxAgentError, match="does not publish port 1: pass the agent_port"):
            await make(agent_port=1).get_url(raw_id)
        await provider.destroy(raw_id)

    async def test_an_image_of_a_registry_is_named(self, make: Make, service: FakeModal) -> None:
        service.failures["create"] = Failure(400, 1)
        with pytest.raises(SandboxAgentError, match="status 400"):
            await make(image="python:3.12").create()
        assert service.requests[1][2]["image"].tag == "python:3.12"


async def test_the_real_sdk_without_a_token_says_which_variables_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SandboxAgentError, match="MODAL_TOKEN_ID"):
        await modal().reconnect("sandbox-agent-0123")


def test_the_provider_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(_: str) -> None:
        return None

    service: Service = ModalProvider.service
    monkeypatch.setattr("sandbox_agent.extras.find_spec", find_spec)
    with pytest.raises(ImportError, match=r"sandbox-agent-py\[modal\]"):
        service.check_installed()
