"""The conformance suite of sandbox providers.

A provider's author subclasses ``SandboxProviderSuite`` in a test module, and with it the suites of what the
provider can do. They get their fixtures from the author, and pytest runs coroutine tests (anyio's plugin)::

    import pytest
    from sandbox_agent.testing.providers import ReconnectSuite, SandboxProviderSuite

    pytestmark = pytest.mark.anyio

    class TestMyProvider(ReconnectSuite, SandboxProviderSuite):
        @pytest.fixture
        def provider(self):
            return MyProvider()

        @pytest.fixture
        def second_provider(self):  # knows nothing of what the first one did
            return MyProvider()

The agents of the tests are ``mock``, which each server has, and one named ``shell``, which runs each prompt
in a shell and answers with its output (``FilesSuite`` and ``PauseSuite``).
For assertions that show their values, call ``pytest.register_assert_rewrite("sandbox_agent.testing")`` in a
conftest before the import.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.session import Session
from sandbox_agent.errors import ConnectionLostError, SandboxDestroyedError
from sandbox_agent.providers.base import SandboxProvider
from sandbox_agent.wire.acp import AgentMessageChunk, TextContent

__all__ = [
    "ENV",
    "CancelSuite",
    "FilesSuite",
    "PauseSuite",
    "ReconnectSuite",
    "RestartSuite",
    "SandboxProviderSuite",
    "run_command",
]

# The variables of the provider under test, for ``FilesSuite``.
ENV: dict[str, str] = {"SUITE_VARIABLE": 'it\'s "quoted", $HOME is not replaced,\nand it has two lines'}
# What a sandbox takes at most until it answers, is paused or is destroyed, on a loaded machine.
SUITE_TIMEOUT = 60.0


async def run_command(session: Session, command: str) -> str:
    """Return the output of a command that the agent ``shell`` runs."""
    said = ""
    async for event in session.stream(command):
        if isinstance(event.update, AgentMessageChunk) and isinstance(event.update.content, TextContent):
            said += event.update.content.text
    return said


@contextlib.asynccontextmanager
async def running_sandbox(provider: SandboxProvider) -> AsyncGenerator[SandboxAgent]:
    """A new sandbox, which is destroyed afterwards."""
    with anyio.fail_after(SUITE_TIMEOUT):
        async with SandboxAgent.start(sandbox=provider) as sdk:
            try:
                yield sdk
            finally:
                await sdk.destroy_sandbox()


def raw_id_of(sdk: SandboxAgent) -> str:
    """Return the id of a client's sandbox as its provider knows it."""
    return str(sdk.sandbox_id).partition("/")[2]


class SandboxProviderSuite:
    """What every provider keeps to. The fixture ``provider`` is the provider under test."""

    async def test_a_sandbox_answers_until_it_is_destroyed(self, provider: SandboxProvider) -> None:
        async with running_sandbox(provider) as sdk:
            assert sdk.sandbox_id == f"{provider.name}/{raw_id_of(sdk)}"
            assert (await sdk.get_health()).status == "ok"
            session = await sdk.create_session(agent="mock")
            assert (await session.prompt("echo hello")).stop_reason == "end_turn"
            raw_id = raw_id_of(sdk)
        with pytest.raises(SandboxDestroyedError):
            await provider.reconnect(raw_id)

    async def test_destroying_a_sandbox_again_does_nothing(self, provider: SandboxProvider) -> None:
        with anyio.fail_after(SUITE_TIMEOUT):
            raw_id = await provider.create()
            await provider.destroy(raw_id)
            await provider.destroy(raw_id)
            await provider.kill(raw_id)

    async def test_requests_without_the_token_are_refused(self, provider: SandboxProvider) -> None:
        async with running_sandbox(provider) as sdk:
            raw_id = raw_id_of(sdk)
            token = await provider.get_token(raw_id)
            url, transport = await provider.get_url(raw_id), await provider.get_transport(raw_id)
            async with httpx2.AsyncClient(transport=transport, base_url=url or "http://sandbox") as client:
                answers = [
                    (await client.get("/v1/agents", headers=headers)).status_code
                    for headers in (
                        {},
                        {"Authorization": "Bearer wrong"},
                        {"Authorization": f"Bearer {token}"},
                    )
                ]
        assert token
        assert answers == [401, 401, 200]

    async def test_two_sandboxes_are_independent(self, provider: SandboxProvider) -> None:
        async with running_sandbox(provider) as one, running_sandbox(provider) as two:
            assert one.sandbox_id != two.sandbox_id
            assert await provider.get_token(raw_id_of(one)) != await provider.get_token(raw_id_of(two))
            await provider.destroy(raw_id_of(one))
            session = await two.create_session(agent="mock")
            assert (await session.prompt("echo hello")).stop_reason == "end_turn"


class ReconnectSuite:
    """A provider that finds sandboxes of other processes.

    The fixture ``second_provider`` is a provider that knows nothing of what ``provider`` did.
    """

    async def test_a_provider_of_another_process_finds_the_sandbox(
        self, provider: SandboxProvider, second_provider: SandboxProvider
    ) -> None:
        async with running_sandbox(provider) as sdk:
            raw_id = raw_id_of(sdk)
            found = SandboxAgent.start(sandbox=second_provider, sandbox_id=sdk.sandbox_id)
            async with found as again:
                session = await again.create_session(agent="mock")
                assert (await session.prompt("echo hello")).stop_reason == "end_turn"
            assert await second_provider.get_token(raw_id) == await provider.get_token(raw_id)
            await second_provider.destroy(raw_id)
            with pytest.raises(SandboxDestroyedError):
                await provider.ensure_server(raw_id)


class RestartSuite:
    """A provider that starts the server of a sandbox again.

    The fixture ``kill_server`` is a coroutine function that kills the server of the sandbox with this raw id.
    """

    async def test_a_server_that_is_killed_is_started_again(
        self, provider: SandboxProvider, kill_server: Callable[[str], Awaitable[object]]
    ) -> None:
        async with running_sandbox(provider) as sdk:
            session = await sdk.create_session(agent="mock")
            await session.prompt("echo before")
            await kill_server(raw_id_of(sdk))
            try:
                response = await session.prompt("echo after")
            except ConnectionLostError:
                # A gateway answered for the dead server, which may have received it: the outcome is unknown,
                # and the next call restores the session.
                response = await session.prompt("echo after")
            assert response.stop_reason == "end_turn"
            sent: list[str] = []
            async for event in session.events():
                if event.payload.get("method") == "session/prompt":
                    sent.append(event.payload["params"]["prompt"][-1]["text"])
                if sent[-1:] == ["echo after"]:
                    break
            assert sent == ["echo before", "echo after"]


class CancelSuite:
    """A provider whose sandboxes can be listed.

    The fixture ``list_sandboxes`` is a coroutine function that returns all that exist, in any state.
    """

    @pytest.mark.parametrize("after", [0.0, 0.05, 0.1, 0.2, 0.4])
    async def test_a_create_that_is_cancelled_leaves_nothing(
        self, provider: SandboxProvider, list_sandboxes: Callable[[], Awaitable[list[str]]], after: float
    ) -> None:
        before = await list_sandboxes()
        with anyio.fail_after(SUITE_TIMEOUT):
            created = None
            with anyio.move_on_after(after):
                created = await provider.create()
            if created is not None:  # the provider was faster
                await provider.destroy(created)
            assert await list_sandboxes() == before


class FilesSuite:
    """A provider with a workspace, an ``env=ENV`` and an agent named ``shell``.

    The fixture ``workspace`` is the folder of this machine that is the sandbox's working directory.
    """

    async def test_variables_arrive(self, provider: SandboxProvider) -> None:
        async with running_sandbox(provider) as sdk:
            session = await sdk.create_session(agent="shell")
            for name, value in ENV.items():
                assert value in await run_command(session, f'printf %s "${name}"')

    async def test_the_workspace_is_shared(self, provider: SandboxProvider, workspace: Path) -> None:
        (workspace / "in").write_text("from outside")
        async with running_sandbox(provider) as sdk:
            session = await sdk.create_session(agent="shell")
            assert "from outside" in await run_command(session, "cat in; echo from inside > out")
        assert (workspace / "out").read_text() == "from inside\n"


class PauseSuite:
    """A provider that can pause sandboxes, with an agent named ``shell``."""

    async def test_a_paused_sandbox_keeps_its_files(self, provider: SandboxProvider) -> None:
        with anyio.fail_after(SUITE_TIMEOUT):
            async with SandboxAgent.start(sandbox=provider) as sdk:
                session = await sdk.create_session(agent="shell")
                await run_command(session, "echo kept > ~/file")
                sandbox_id = sdk.sandbox_id
                await sdk.pause_sandbox()
            async with SandboxAgent.start(sandbox=provider, sandbox_id=sandbox_id) as sdk:
                session = await sdk.create_session(agent="shell")
                try:
                    assert "kept" in await run_command(session, "cat ~/file")
                finally:
                    await sdk.destroy_sandbox()
