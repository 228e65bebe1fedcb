"""The wait for a healthy server, on a clock that the test drives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent import (
    ClientOptions,
    ConnectionLostError,
    HealthTimeoutError,
    SandboxAgent,
    SandboxDestroyedError,
    TokenInvalidError,
)
from sandbox_agent.client import health
from sandbox_agent.client.health import wait_until_healthy
from tests.client.checks import until
from tests.client.conftest import Front
from tests.client.scripted import ScriptedServer
from tests.support.servers import our_server

pytestmark = pytest.mark.anyio


class Clock:
    """Time that passes when someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, delay: float) -> None:
        self.slept.append(delay)
        self.now += delay


def failing(times: int) -> tuple[Callable[[], Awaitable[Any]], list[int]]:
    """Return a probe that fails so often, and its calls."""
    calls: list[int] = []

    async def probe() -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise ConnectionLostError("refused")
        return {"status": "ok"}

    return probe, calls


async def test_a_healthy_server_is_asked_once() -> None:
    clock = Clock()
    probe, calls = failing(0)
    await wait_until_healthy(probe, where=lambda: "x", clock=clock, sleep=clock.sleep)
    assert (len(calls), clock.slept) == (1, [])


async def test_delays_double_from_half_a_second_to_fifteen() -> None:
    clock = Clock()
    probe, _ = failing(8)
    await wait_until_healthy(probe, where=lambda: "x", clock=clock, sleep=clock.sleep)
    assert clock.slept == [0.5, 1, 2, 4, 8, 15, 15, 15]


async def test_the_server_is_ensured_after_three_failures_in_a_row() -> None:
    clock = Clock()
    probe, calls = failing(7)
    ensured: list[int] = []

    async def ensure() -> None:
        ensured.append(len(calls))

    await wait_until_healthy(probe, where=lambda: "x", ensure_server=ensure, clock=clock, sleep=clock.sleep)
    assert ensured == [3, 6]


async def test_an_ensure_that_fails_does_not_end_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    probe, _ = failing(4)

    async def ensure() -> None:
        raise RuntimeError("no way")

    await wait_until_healthy(probe, where=lambda: "x", ensure_server=ensure, clock=clock, sleep=clock.sleep)
    assert "no way" in caplog.text


async def test_a_wait_warns_after_five_seconds_and_then_every_ten() -> None:
    assert (health.WARN_AFTER, health.WARN_EVERY) == (5, 10)


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_warning_says_what_is_waited_for_even_while_a_probe_hangs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(health, "WARN_AFTER", 0.01)
    monkeypatch.setattr(health, "WARN_EVERY", 0.01)

    async def probe() -> Any:
        if hangs:
            await asyncio.Event().wait()
        raise ConnectionLostError("refused")

    with anyio.fail_after(10), caplog.at_level(logging.WARNING, logger="sandbox_agent.client"):
        wait = wait_until_healthy(probe, where=lambda: "sandbox-agent at http://x", timeout=120)
        waiting = asyncio.create_task(wait)
        await until(lambda: len(caplog.records) > 1)
        waiting.cancel()
    problem = "no response yet" if hangs else "refused"
    expected = f"waiting for sandbox-agent at http://x, for at most 120 s: not healthy after 0 s ({problem})"
    assert caplog.records[0].getMessage() == expected
    assert {record.name for record in caplog.records} == {"sandbox_agent.client"}


@pytest.mark.parametrize(("options", "timeout"), [({}, 120), ({"health_timeout": None}, None)])
async def test_the_wait_is_bounded_unless_the_caller_wants_it_endless(
    monkeypatch: pytest.MonkeyPatch, options: ClientOptions, timeout: float | None
) -> None:
    timeouts: list[float | None] = []

    async def wait(*_args: object, **given: Any) -> None:
        timeouts.append(given["timeout"])

    monkeypatch.setattr(health, "wait_until_healthy", wait)
    given: ClientOptions = {"transport": ScriptedServer(), **options}
    async with SandboxAgent.connect(**given) as sdk:
        await sdk.create_session(agent="mock")
    assert timeouts == [timeout]


async def test_a_server_that_was_healthy_before_is_ensured_at_its_first_failure() -> None:
    clock = Clock()
    probe, calls = failing(1)
    ensured: list[int] = []

    async def ensure() -> None:
        ensured.append(len(calls))

    await wait_until_healthy(
        probe,
        where=lambda: "x",
        ensure_server=ensure,
        was_healthy=True,
        clock=clock,
        sleep=clock.sleep,
    )
    assert (ensured, len(calls), clock.slept) == ([1], 2, [])


async def test_a_sandbox_that_is_destroyed_ends_the_wait() -> None:
    clock = Clock()
    probe, _ = failing(1000)

    async def ensure() -> None:
        raise SandboxDestroyedError("box-1", "elsewhere")

    with pytest.raises(SandboxDestroyedError):
        await wait_until_healthy(
            probe, where=lambda: "x", ensure_server=ensure, clock=clock, sleep=clock.sleep
        )


async def test_an_ensure_that_hangs_does_not_outlast_the_timeout() -> None:
    probe, _ = failing(1000)

    async def ensure() -> None:
        await asyncio.Event().wait()

    with anyio.fail_after(5), pytest.raises(HealthTimeoutError, match="refused"):
        await wait_until_healthy(
            probe, where=lambda: "x", ensure_server=ensure, was_healthy=True, timeout=0.05
        )


@pytest.mark.parametrize("timeout", [0.1, 1.0, 4.0, 100.0])
async def test_the_wait_ends_at_its_timeout(timeout: float) -> None:
    clock = Clock()
    probe, _ = failing(1000)
    with pytest.raises(HealthTimeoutError, match="is the server running"):
        await wait_until_healthy(probe, where=lambda: "x", timeout=timeout, clock=clock, sleep=clock.sleep)
    assert clock.now == pytest.approx(timeout)


async def test_an_answer_other_than_ok_is_a_failure() -> None:
    clock = Clock()
    answers: list[Any] = [{"status": "starting"}, "hello", {"status": "ok"}]

    async def probe() -> Any:
        return answers.pop(0)

    await wait_until_healthy(probe, where=lambda: "x", clock=clock, sleep=clock.sleep)
    assert len(clock.slept) == 2


async def test_no_request_is_sent_before_the_server_is_healthy() -> None:
    server = ScriptedServer()
    server.healthy = False
    async with SandboxAgent.connect(transport=server) as sdk:
        making = asyncio.create_task(sdk.create_session(agent="mock"))
        with anyio.fail_after(10):
            await until(lambda: len(server.paths) >= 2)
            assert set(server.paths) == {"GET /v1/health"}
            server.healthy = True
            await making


async def test_the_check_can_be_skipped() -> None:
    server = ScriptedServer()
    server.healthy = False
    async with SandboxAgent.connect(transport=server, skip_health_check=True) as sdk:
        await sdk.create_session(agent="mock")
    assert "GET /v1/health" not in server.paths


async def test_the_timeout_reaches_who_asked() -> None:
    server = ScriptedServer()
    server.healthy = False
    async with SandboxAgent.connect(transport=server, health_timeout=0.05) as sdk:
        with pytest.raises(HealthTimeoutError):
            await sdk.create_session(agent="mock")
        server.healthy = True
        await sdk.create_session(agent="mock")


async def test_dispose_ends_the_wait() -> None:
    server = ScriptedServer()
    server.healthy = False
    sdk = await SandboxAgent.connect(transport=server)
    with anyio.fail_after(5):
        await sdk.dispose()


async def test_an_address_is_required_unless_there_is_a_transport() -> None:
    with pytest.raises(ValueError, match="base_url is required"):
        await SandboxAgent.connect()


async def test_a_probe_that_hangs_does_not_outlast_the_timeout() -> None:
    async def probe() -> Any:
        await asyncio.Event().wait()

    with anyio.fail_after(5), pytest.raises(HealthTimeoutError, match="no response"):
        await wait_until_healthy(probe, where=lambda: "x", timeout=0.05)


@pytest.mark.parametrize("token", ["wrong", None])
async def test_a_refused_token_ends_the_wait(tmp_path: Path, token: str | None, front: Front) -> None:
    with our_server(tmp_path, token="right-token") as server, anyio.fail_after(10):
        async with SandboxAgent.connect(base_url=front(server).url, token=token) as sdk:
            for _ in range(2):
                with pytest.raises(TokenInvalidError):
                    await sdk.create_session(agent="mock")


@pytest.mark.parametrize(
    "base_url", ["127.0.0.1:2468", "http://", "ftp://host", "http://[::1", "http://host:99999", "host"]
)
async def test_an_address_that_is_none_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        await SandboxAgent.connect(base_url=base_url)


@pytest.mark.parametrize("token", ["secret\n", "sec\rret", "sec\ud800ret"])
async def test_a_token_that_no_header_carries_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="token") as caught:
        await SandboxAgent.connect(base_url="http://127.0.0.1:1", token=token)
    assert "sec" not in str(caught.value)
