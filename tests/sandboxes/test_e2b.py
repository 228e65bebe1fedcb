"""e2b() with E2B's own SDK, at an E2B on loopback whose sandboxes run the start script and the server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox_agent import E2BProvider, SandboxAgent, SandboxAgentError, SandboxDestroyedError, e2b
from sandbox_agent.providers.e2b import _mapped  # pyright: ignore[reportPrivateUsage]
from sandbox_agent.providers.start_script import package_version
from sandbox_agent.testing.providers import ReconnectSuite, RestartSuite, run_command
from sandbox_agent.testing.providers import SandboxProviderSuite as Suite
from tests.sandboxes.fakes.e2b import Failure, FakeE2B
from tests.support import shell_agent
from tests.support.servers import free_port

pytest.importorskip("e2b", reason="E2B NOT TESTED: its SDK is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]

ENV = {"GREETING": 'it\'s "hello"\nand $HOME'}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeE2B]:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sandbox-agent").symlink_to(Path(sys.executable).with_name("sandbox-agent"))
    with FakeE2B(tmp_path / "home", programs) as fake:
        yield fake


@pytest.fixture
def make(service: FakeE2B) -> Callable[..., E2BProvider]:
    port = free_port()

    def make_provider(**options: Any) -> E2BProvider:
        options = {"client": service.client, "home": str(service.home), "agent_port": port, **options}
        options["args"] = ["--agent-command", f"shell={sys.executable} {shell_agent.__file__}"]
        return e2b(**options)

    return make_provider


class TestE2B(ReconnectSuite, RestartSuite, Suite):
    @pytest.fixture
    def provider(self, make: Callable[..., E2BProvider]) -> E2BProvider:
        return make()

    @pytest.fixture
    def second_provider(self, make: Callable[..., E2BProvider]) -> E2BProvider:
        return make()

    @pytest.fixture
    def kill_server(self, service: FakeE2B) -> Callable[[str], Awaitable[object]]:
        async def kill(_: str) -> None:
            service.kill_server()

        return kill

    # Both would listen on the same port of this machine.
    test_two_sandboxes_are_independent = None  # pyright: ignore[reportAssignmentType]


async def test_the_requests_to_the_service_are_these(
    make: Callable[..., E2BProvider], service: FakeE2B
) -> None:
    provider = make(template="my-template", env={"A": "1"}, create={"allow_internet_access": False})
    raw_id = await provider.create()
    await provider.pause(raw_id)
    await provider.reconnect(raw_id)
    await provider.destroy(raw_id)
    assert service.requests == [
        (
            "POST",
            "/v2/sandboxes",
            {
                "templateID": "my-template",
                "timeout": 3600,
                "autoPause": True,
                "allow_internet_access": False,
                "metadata": {"sandbox-agent": "1", "sandbox-agent-version": package_version()},
                "envVars": {"A": "1"},
            },
        ),
        ("POST", f"/sandboxes/{raw_id}/pause", {}),
        ("POST", f"/v2/sandboxes/{raw_id}/connect", {"timeout": 3600}),
        ("DELETE", f"/sandboxes/{raw_id}", None),
    ]


async def test_a_function_chooses_the_native_arguments(
    make: Callable[..., E2BProvider], service: FakeE2B
) -> None:
    def choose(options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "timeout": 60, "metadata": {"team": "a"}}

    provider = make(create=choose)
    await provider.destroy(await provider.create())
    body = service.requests[0][2]
    assert body["timeout"] == 60
    assert {**body["metadata"], "team": "a", "sandbox-agent": "1"} == body["metadata"]


async def test_variables_and_the_workspace_arrive(make: Callable[..., E2BProvider], tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (project / ".gitignore").write_text("ignored")
    (project / "ignored").write_text("here, too")
    (project / "run.sh").write_text("#!/bin/sh\necho executable\n")
    (project / "run.sh").chmod(0o755)
    async with SandboxAgent.start(sandbox=make(env=ENV, workspace=project)) as sdk:
        session = await sdk.create_session(agent="shell")
        said = await run_command(session, 'printf %s "$GREETING"; cat .git/HEAD ignored; ./run.sh; pwd')
        await sdk.destroy_sandbox()
    for text in (ENV["GREETING"], "ref: refs/heads/main", "here, too", "executable", "/home/workspace"):
        assert text in said


async def test_a_paused_sandbox_continues(make: Callable[..., E2BProvider], service: FakeE2B) -> None:
    async with SandboxAgent.start(sandbox=make()) as sdk:
        sandbox_id = sdk.sandbox_id
        session = await sdk.create_session(agent="shell")
        await run_command(session, "echo kept > ~/file")
        await sdk.pause_sandbox()
    assert [box.is_paused for box in service.boxes.values()] == [True]
    async with SandboxAgent.start(sandbox=make(), sandbox_id=sandbox_id) as sdk:
        session = await sdk.create_session(agent="shell")
        assert "kept" in await run_command(session, "cat ~/file")
        await sdk.destroy_sandbox()


async def test_the_timeout_is_renewed_while_the_sandbox_is_used(
    make: Callable[..., E2BProvider], service: FakeE2B, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = make(timeout=400)
    raw_id = await provider.create()
    now = 1000.0
    monkeypatch.setattr("sandbox_agent.providers.remote.time.monotonic", lambda: now)
    url = await provider.get_url(raw_id)
    async with httpx2.AsyncClient(transport=await provider.get_transport(raw_id)) as client:
        service.requests.clear()
        assert (await client.get(f"{url}/v1/health")).status_code == 200
        assert service.requests == []
        now += 101
        for _ in range(2):
            assert (await client.get(f"{url}/v1/health")).status_code == 200
        assert service.requests == [("POST", f"/sandboxes/{raw_id}/timeout", {"timeout": 400})]
        # One that fails does not fail the request.
        service.failures["timeout"] = Failure(500, 1)
        now += 101
        assert (await client.get(f"{url}/v1/health")).status_code == 200
    await provider.destroy(raw_id)


async def test_a_sandbox_that_is_gone_is_destroyed_for_each_call(make: Callable[..., E2BProvider]) -> None:
    provider = make()
    for call in (provider.reconnect, provider.ensure_server, provider.pause, provider.get_token):
        with pytest.raises(SandboxDestroyedError):
            await call("i0123")
    await provider.destroy("i0123")


async def test_a_sandbox_that_ends_under_a_provider_is_destroyed(
    make: Callable[..., E2BProvider], service: FakeE2B
) -> None:
    provider = make()
    raw_id = await provider.create()
    service.kill_server()
    service.boxes.clear()
    with pytest.raises(SandboxDestroyedError):
        await provider.ensure_server(raw_id)


@pytest.mark.parametrize(
    ("status", "said"), [(401, "E2B_API_KEY"), (403, "E2B_API_KEY"), (400, "made to fail with 400")]
)
async def test_a_refusal_says_what_to_do(
    make: Callable[..., E2BProvider], service: FakeE2B, status: int, said: str
) -> None:
    service.failures["create"] = Failure(status, 10)
    with pytest.raises(SandboxAgentError, match=said):
        await make().create()
    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_request_that_the_service_delays_is_tried_again_and_not_forever(
    make: Callable[..., E2BProvider], service: FakeE2B, status: int
) -> None:
    service.failures["create"] = Failure(status, 2, {"Retry-After": "0"})
    provider = make()
    await provider.destroy(await provider.create())
    assert [request[1] for request in service.requests[:3]] == ["/v2/sandboxes"] * 3
    service.requests.clear()
    service.failures["create"] = Failure(status, 1000, {"Retry-After": "0"})
    with pytest.raises(SandboxAgentError, match="after several tries"):
        await provider.create()
    assert len(service.requests) < 10
    assert service.boxes == {}


async def test_a_server_that_does_not_start_leaves_no_sandbox(
    make: Callable[..., E2BProvider], service: FakeE2B
) -> None:
    with pytest.raises(SandboxAgentError, match="agents could not be installed: no-such-agent"):
        await make(install_agents=["no-such-agent"]).create()
    assert service.boxes == {}


async def test_a_server_that_its_url_does_not_lead_to_fails_and_leaves_no_sandbox(
    make: Callable[..., E2BProvider], service: FakeE2B, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.providers.remote.ROUTE_TIMEOUT", 0.5)
    service.has_traffic = False
    with pytest.raises(SandboxAgentError, match=r"did not respond at .* within 0.5 s: status 502"):
        await make().create()
    assert service.boxes == {}


async def test_a_create_that_is_cancelled_leaves_nothing(
    make: Callable[..., E2BProvider], service: FakeE2B
) -> None:
    service.may_respond.clear()
    creating = asyncio.ensure_future(make().create())
    await asyncio.to_thread(service.created.wait)
    assert len(service.boxes) == 1
    creating.cancel()
    service.may_respond.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert service.boxes == {}


async def test_a_create_that_is_cancelled_while_the_server_starts_leaves_nothing(
    make: Callable[..., E2BProvider], service: FakeE2B
) -> None:
    creating = asyncio.ensure_future(make().create())
    await asyncio.to_thread(service.has_script.wait)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert service.boxes == {}


@pytest.mark.parametrize("is_cause", [True, False])
async def test_a_cancellation_that_the_sdk_has_turned_into_an_error_is_one(*, is_cause: bool) -> None:
    def fail() -> None:
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError as cancelled:
            raise RuntimeError("Request was cancelled") from (cancelled if is_cause else None)

    with pytest.raises(asyncio.CancelledError), _mapped("e2b", "a"):
        fail()


async def test_the_loop_runs_while_a_sandbox_is_created(make: Callable[..., E2BProvider]) -> None:
    provider = make()
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.001)

    beating = asyncio.ensure_future(beat())
    try:
        raw_id = await provider.create()
        await provider.destroy(raw_id)
    finally:
        beating.cancel()
    # A call that blocks the loop while the server starts would leave a handful of turns.
    assert beats > 50
