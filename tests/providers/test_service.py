"""What a provider does when its service fails."""

from __future__ import annotations

import asyncio
import email.utils
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest

from sandbox_agent import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.extras import MissingExtraError
from sandbox_agent.providers.service import Service, ServiceFailure, retry_after, was_refused

pytestmark = pytest.mark.anyio

SERVICE = Service("Boxes", "boxes", "BOXES_KEY", "client={'key': ...}")


class NativeError(Exception):
    def __init__(self, failure: ServiceFailure) -> None:
        self.failure = failure


def describe(error: Exception) -> ServiceFailure | None:
    return error.failure if isinstance(error, NativeError) else None


def failing(*failures: ServiceFailure) -> tuple[Callable[[], Awaitable[str]], list[int]]:
    """Return a call that fails with each of these, then succeeds, and the numbers of its calls."""
    calls: list[int] = []

    async def call() -> str:
        calls.append(len(calls))
        if len(calls) <= len(failures):
            raise NativeError(failures[len(calls) - 1])
        return "done"

    return call, calls


def status(number: int | None, wait: float | None = 0.0) -> ServiceFailure:
    return ServiceFailure("no", number, wait)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (401, "set the variable BOXES_KEY"),
        (403, "BOXES_KEY"),
        (400, "status 400"),
        (404, "no longer exists"),
        (410, "no longer exists"),
    ],
)
async def test_an_error_says_what_it_means_and_is_not_repeated(number: int, said: str) -> None:
    call, calls = failing(status(number))
    with pytest.raises(SandboxAgentError) as raised:
        await SERVICE.call("a", call, describe)
    assert said.lower() in str(raised.value).lower()
    assert isinstance(raised.value, SandboxDestroyedError) == (number in (404, 410))
    assert calls == [0]


async def test_what_a_new_sandbox_lacks_is_not_a_destroyed_sandbox() -> None:
    call, _ = failing(status(404))
    with pytest.raises(SandboxAgentError, match="failed for this request") as raised:
        await SERVICE.call(None, call, describe)
    assert not isinstance(raised.value, SandboxDestroyedError)


async def test_a_missing_file_is_not_a_destroyed_sandbox() -> None:
    call, _ = failing(ServiceFailure("no token", 404, is_about_file=True))
    with pytest.raises(SandboxAgentError, match="lacks a file: no token") as raised:
        await SERVICE.call("a", call, describe)
    assert not isinstance(raised.value, SandboxDestroyedError)


@pytest.mark.parametrize("number", [429, 500, 502, 503, 504, None])
async def test_a_call_is_repeated_until_it_succeeds(number: int | None) -> None:
    call, calls = failing(status(number), status(number))
    assert await SERVICE.call("a", call, describe) == "done"
    assert calls == [0, 1, 2]


@pytest.mark.parametrize(
    ("number", "is_repeated"), [(429, True), (503, True), (500, False), (504, False), (None, False)]
)
async def test_a_call_that_may_have_had_its_effect_is_repeated_only_if_it_was_refused(
    number: int | None, *, is_repeated: bool
) -> None:
    call, calls = failing(status(number))
    if is_repeated:
        assert await SERVICE.call(None, call, describe, is_repeatable=False) == "done"
    else:
        with pytest.raises(SandboxAgentError):
            await SERVICE.call(None, call, describe, is_repeatable=False)
    assert len(calls) == 1 + is_repeated


async def test_a_gateway_that_does_not_say_when_to_come_back_may_have_passed_the_call_on() -> None:
    call, calls = failing(status(503, None))
    with pytest.raises(SandboxAgentError):
        await SERVICE.call(None, call, describe, is_repeatable=False)
    assert calls == [0]


async def test_a_call_is_given_up_after_several_tries() -> None:
    call, calls = failing(*[status(503)] * 100)
    with pytest.raises(SandboxAgentError, match="after several tries"):
        await SERVICE.call("a", call, describe)
    assert len(calls) == 5


async def test_a_long_pause_is_not_waited_for() -> None:
    call, calls = failing(status(429, 3600))
    with pytest.raises(SandboxAgentError, match="It asks to wait 3600 s"):
        await SERVICE.call("a", call, describe)
    assert calls == [0]


async def test_an_error_that_is_not_the_services_is_raised_as_it_is() -> None:
    async def call() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await SERVICE.call("a", call, describe)


@pytest.mark.parametrize("is_cause", [True, False])
async def test_a_cancellation_that_the_sdk_has_turned_into_an_error_is_one(*, is_cause: bool) -> None:
    async def call() -> None:
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError as cancelled:
            raise RuntimeError("Request was cancelled") from (cancelled if is_cause else None)

    with pytest.raises(asyncio.CancelledError):
        await SERVICE.call("a", call, describe)


@pytest.mark.parametrize(
    ("number", "is_refused"),
    [
        (400, True),
        (401, True),
        (404, True),
        (408, False),
        (409, False),
        (429, True),
        (500, False),
        (503, False),
    ],
)
def test_what_was_refused_leaves_nothing(number: int, *, is_refused: bool) -> None:
    assert was_refused(SandboxAgentError("no", status=number)) is is_refused
    assert was_refused(SandboxAgentError("no")) is False
    assert was_refused(asyncio.CancelledError()) is False


async def test_a_timeout_in_the_sdk_is_not_a_cancellation() -> None:
    async def call() -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError as error:
            raise NativeError(status(408)) from error

    with pytest.raises(SandboxAgentError, match="status 408"):
        await SERVICE.call("a", call, describe)


@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("-1", 0.0), ("soon", None), (None, None)])
def test_retry_after_in_seconds_is_read(text: str | None, seconds: float | None) -> None:
    assert retry_after({} if text is None else {"Retry-After": text}) == seconds


def test_retry_after_as_a_date_is_read() -> None:
    wait = retry_after({"retry-after": email.utils.formatdate(time.time() + 30, usegmt=True)})
    assert wait is not None
    assert 20 < wait <= 30


@pytest.mark.parametrize("module", ["no_such_sdk", "no_such_sdk.module"])
def test_a_missing_sdk_is_named_with_its_extra(module: str) -> None:
    service = Service("Boxes", "boxes", "BOXES_KEY", "client=...", module=module)
    with pytest.raises(MissingExtraError, match=r"sandbox-agent-py\[boxes\]"):
        service.check_installed()


@pytest.mark.parametrize("name", [pytest.param("daytona", marks=pytest.mark.soak), "e2b"])
def test_an_sdk_is_imported_in_a_thread(name: str) -> None:
    pytest.importorskip(name)
    script = f"""
import asyncio, sys, threading
from sandbox_agent import {name}
service = {name}().service
found = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        found.append((name, threading.current_thread() is threading.main_thread()))
async def main():
    sys.meta_path.insert(0, Finder())
    await service.load()
    loaded = len(found)
    module = __import__(service.module)
    if service.client: getattr(module, service.client)
    names = [name for name, is_main in found if is_main and name.startswith(service.module)]
    assert loaded and not names, names
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
