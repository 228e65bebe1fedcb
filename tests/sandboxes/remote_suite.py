"""What every provider of a service keeps to, over a fake of the service and with its real SDK."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest

from sandbox_agent import SandboxAgent, SandboxAgentError, SandboxDestroyedError
from sandbox_agent.providers.remote import RemoteProvider
from sandbox_agent.providers.start_script import package_version
from sandbox_agent.testing.providers import (
    ReconnectSuite,
    RestartSuite,
    SandboxProviderSuite,
    raw_id_of,
    run_command,
    running_sandbox,
)
from tests.sandboxes.fakes.service import Failure, FakeService
from tests.support import shell_agent
from tests.support.servers import free_port

ENV = {"GREETING": 'it\'s "hello"\nand $HOME'}
METADATA = {"sandbox-agent": "1", "sandbox-agent-version": package_version()}

Make = Callable[..., RemoteProvider[Any]]


class RemoteSuite(ReconnectSuite, RestartSuite, SandboxProviderSuite):
    """The tests of a provider. A subclass names the fake and how a provider uses it."""

    fake: ClassVar[type[FakeService]]
    # The service that the errors name, and its variable.
    title: ClassVar[str]
    variable: ClassVar[str]
    # Whether the service sets a timeout again, and whether it pauses.
    has_timeout: ClassVar[bool] = True
    has_pause: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        if not cls.has_pause:
            cls.test_a_paused_sandbox_continues = None  # pyright: ignore[reportAttributeAccessIssue]
        if not cls.has_timeout:
            cls.test_the_timeout_is_renewed_while_the_sandbox_is_used = None  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def provider_of(service: Any, options: dict[str, Any]) -> RemoteProvider[Any]:
        """Return a provider that uses the fake."""
        raise NotImplementedError

    @contextlib.contextmanager
    def running_fake(self, folder: Path) -> Generator[FakeService]:
        """Run the fake, with a program that images may have."""
        programs = folder / "programs"
        programs.mkdir()
        (programs / "sandbox-agent").symlink_to(Path(sys.executable).with_name("sandbox-agent"))
        with self.fake(folder / "home", programs) as fake:
            yield fake

    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[FakeService]:
        with self.running_fake(tmp_path) as fake:
            yield fake

    @pytest.fixture
    def make(self, service: FakeService) -> Make:
        port = free_port()

        def make_provider(**options: Any) -> RemoteProvider[Any]:
            options = {"home": str(service.home), "agent_port": port, **options}
            options["args"] = ["--agent-command", f"shell={sys.executable} {shell_agent.__file__}"]
            return self.provider_of(service, options)

        return make_provider

    @pytest.fixture
    def provider(self, make: Make) -> RemoteProvider[Any]:
        return make()

    @pytest.fixture
    def second_provider(self, make: Make) -> RemoteProvider[Any]:
        return make()

    @pytest.fixture
    def kill_server(self, service: FakeService) -> Callable[[str], Awaitable[object]]:
        async def kill(_: str) -> None:
            service.kill_server()

        return kill

    # Both run on this machine, where each needs a home and a port of its own.
    test_two_sandboxes_are_independent = None  # pyright: ignore[reportAssignmentType]

    async def test_two_sandboxes_at_once_are_independent(
        self, make: Make, service: FakeService, tmp_path: Path
    ) -> None:
        one, two = (make(home=str(tmp_path / name), agent_port=free_port()) for name in ("one", "two"))
        async with running_sandbox(one) as first, running_sandbox(two) as second:
            assert len(service.boxes) == 2
            assert await one.get_token(raw_id_of(first)) != await two.get_token(raw_id_of(second))
            for sdk, name in ((first, "one"), (second, "two")):
                session = await sdk.create_session(agent="shell")
                assert str(tmp_path / name) in await run_command(session, "pwd")
            await one.destroy(raw_id_of(first))
            assert list(service.boxes) != []
            session = await second.create_session(agent="mock")
            assert (await session.prompt("echo hello")).stop_reason == "end_turn"
        assert service.boxes == {}

    async def test_variables_and_the_workspace_arrive(self, make: Make, tmp_path: Path) -> None:
        project = tmp_path / "project"
        (project / ".git").mkdir(parents=True)
        (project / ".git" / "HEAD").write_text("ref: refs/heads/main")
        (project / ".gitignore").write_text("ignored")
        (project / "ignored").write_text("here, too")
        (project / "run.sh").write_text("#!/bin/sh\necho executable\n")
        (project / "run.sh").chmod(0o755)
        provider = make(env=ENV, workspace=project)
        async with SandboxAgent.start(sandbox=provider) as sdk:
            session = await sdk.create_session(agent="shell")
            said = await run_command(session, 'printf %s "$GREETING"; cat .git/HEAD ignored; ./run.sh; pwd')
            raw_id = str(sdk.sandbox_id).partition("/")[2]
            code, output = await provider.execute(raw_id, ["sh", "-c", "cat ignored; exit 7"])
            assert (code, output.strip()) == (7, b"here, too")
            logs = await provider.logs(raw_id)
            assert await provider.logs(raw_id, 1) == logs.splitlines(keepends=True)[-1]
            await sdk.destroy_sandbox()
        for text in (ENV["GREETING"], "ref: refs/heads/main", "here, too", "executable", "/home/workspace"):
            assert text in said

    async def test_a_paused_sandbox_continues(self, make: Make, service: FakeService) -> None:
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
        self, make: Make, service: FakeService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = make(timeout=600)
        raw_id = await provider.create()
        now = 1000.0
        monkeypatch.setattr("sandbox_agent.providers.renewing_transport.clock", lambda: now)
        url = await provider.get_url(raw_id)
        async with httpx2.AsyncClient(transport=await provider.get_transport(raw_id)) as client:
            service.requests.clear()
            assert (await client.get(f"{url}/v1/health")).status_code == 200
            assert service.requests == []
            now += 151
            for _ in range(2):
                assert (await client.get(f"{url}/v1/health")).status_code == 200
            assert service.requests == self.renewal(raw_id, 600)
            # One that fails does not fail the request.
            service.failures["timeout"] = Failure(500, 1)
            now += 151
            assert (await client.get(f"{url}/v1/health")).status_code == 200
        await provider.destroy(raw_id)

    def renewal(self, raw_id: str, timeout: int) -> list[tuple[str, str, Any]]:
        """Return the requests that renew a timeout."""
        raise NotImplementedError

    async def test_a_sandbox_that_is_gone_is_destroyed_for_each_call(self, make: Make) -> None:
        provider = make()
        for call in (provider.reconnect, provider.ensure_server, provider.get_token, provider.get_url):
            with pytest.raises(SandboxDestroyedError):
                await call("sandbox-agent-0123")
        if self.has_pause:
            with pytest.raises(SandboxDestroyedError):
                await provider.pause("sandbox-agent-0123")
        await provider.destroy("sandbox-agent-0123")

    async def test_a_sandbox_that_ends_under_a_provider_is_destroyed(
        self, make: Make, service: FakeService
    ) -> None:
        provider = make()
        raw_id = await provider.create()
        service.kill_server()
        service.boxes.clear()
        with pytest.raises(SandboxDestroyedError):
            await provider.ensure_server(raw_id)

    @pytest.mark.parametrize("status", [401, 403, 400])
    async def test_a_refusal_says_what_to_do(self, make: Make, service: FakeService, status: int) -> None:
        service.failures["create"] = Failure(status, 10)
        said = f"made to fail with {status}" if status == 400 else self.variable
        with pytest.raises(SandboxAgentError, match=said) as raised:
            await make().create()
        assert self.title in str(raised.value)
        assert raised.value.status == status
        assert service.failures["create"].times == 9
        assert service.boxes == {}
        # Nothing was created, so nothing is destroyed.
        assert "DELETE" not in [method for method, _, _ in service.requests]

    async def test_a_request_that_the_service_delays_is_tried_again_and_not_forever(
        self, make: Make, service: FakeService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sandbox_agent.providers.service._FIRST_WAIT", 0.0)
        service.failures["create"] = failure = Failure(429, 2, {"Retry-After": "0"})
        provider = make()
        await provider.destroy(await provider.create())
        assert failure.times == 0
        service.failures["create"] = failure = Failure(503, 1000, {"Retry-After": "0"})
        with pytest.raises(SandboxAgentError, match="after several tries"):
            await provider.create()
        assert failure.times > 990
        assert service.boxes == {}

    async def test_a_create_that_is_cancelled_leaves_nothing(self, make: Make, service: FakeService) -> None:
        service.may_respond.clear()
        creating = asyncio.ensure_future(make().create())
        await asyncio.to_thread(service.created.wait)
        assert len(service.boxes) == 1
        creating.cancel()
        service.may_respond.set()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert service.boxes == {}

    async def test_a_create_that_is_not_answered_ends_and_leaves_nothing(
        self, make: Make, service: FakeService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sandbox_agent.providers.remote.CALL_TIMEOUT", 0.5)
        service.may_respond.clear()
        provider = make()
        with pytest.raises(SandboxAgentError, match="did not answer in time"):
            await provider.create()
        assert service.boxes == {}

    async def test_a_create_whose_response_is_lost_leaves_nothing(
        self, make: Make, service: FakeService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A gateway says 503 for a service that has created the sandbox."""
        monkeypatch.setattr("sandbox_agent.providers.service._FIRST_WAIT", 0.0)
        service.failures["created"] = Failure(503, 1)
        provider = make()
        try:
            await provider.destroy(await provider.create())
        except SandboxAgentError:
            assert service.failures["created"].times == 0
        assert service.boxes == {}

    async def test_the_loop_runs_while_a_sandbox_is_created(self, make: Make) -> None:
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


class StartSuite(RemoteSuite):
    """What the base does for each service, tested with one of them."""

    async def test_an_unknown_option_is_refused(self, make: Make) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'timout'"):
            make(timout=60)

    async def test_a_server_that_does_not_start_leaves_no_sandbox(
        self, make: Make, service: FakeService
    ) -> None:
        with pytest.raises(SandboxAgentError, match="agents could not be installed: no-such-agent"):
            await make(install_agents=["no-such-agent"]).create()
        assert service.boxes == {}

    async def test_a_server_that_its_url_does_not_lead_to_fails_and_leaves_no_sandbox(
        self, make: Make, service: FakeService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sandbox_agent.providers.remote.ROUTE_TIMEOUT", 0.5)
        service.has_traffic = False
        with pytest.raises(SandboxAgentError, match=r"did not respond at .* within 0.5 s: status 502"):
            await make().create()
        assert service.boxes == {}

    async def test_a_create_that_is_cancelled_while_the_server_starts_leaves_nothing(
        self, make: Make, service: FakeService
    ) -> None:
        creating = asyncio.ensure_future(make().create())
        await asyncio.to_thread(service.has_script.wait)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert service.boxes == {}
