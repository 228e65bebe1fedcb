"""Pipes: messages stay whole whoever writes, whoever gives up, however slowly they are read."""

from __future__ import annotations

import asyncio
import os

import anyio
import anyio.lowlevel
import pytest

from sandbox_agent.runtime.pipes import PipeReader, PipeWriter

pytestmark = pytest.mark.anyio


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


async def drain(read: int, sizes: int = 3000) -> bytes:
    """Read to the end, a little at a time."""
    os.set_blocking(read, False)
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(read, sizes)
        except BlockingIOError:
            await anyio.lowlevel.checkpoint()
            continue
        if not part:
            os.close(read)
            return b"".join(parts)
        parts.append(part)
        await anyio.lowlevel.checkpoint()


async def test_messages_of_many_writers_stay_whole_when_the_reader_is_slow(pipe: tuple[int, int]) -> None:
    read, write = pipe
    writer = PipeWriter(write)
    messages = [bytes([65 + index]) * (20_000 + 17_000 * index) + b"\n" for index in range(12)]
    received = b""

    async def read_all() -> None:
        nonlocal received
        received = await drain(read)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as outer:
            outer.start_soon(read_all)
            async with anyio.create_task_group() as tasks:
                for message in messages:
                    tasks.start_soon(writer.write, message)
            writer.close()
    assert sorted(received.splitlines(keepends=True)) == sorted(messages)


async def test_a_writer_that_is_cancelled_in_the_middle_leaves_a_whole_message(pipe: tuple[int, int]) -> None:
    read, write = pipe
    writer = PipeWriter(write)
    begun = asyncio.ensure_future(writer.write(b"a" * 1_000_000 + b"\n"))
    waiting = asyncio.ensure_future(writer.write(b"b" * 1_000_000 + b"\n"))
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    begun.cancel()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    with pytest.raises(asyncio.CancelledError):
        await waiting

    received = b""

    async def read_all() -> None:
        nonlocal received
        received = await drain(read, 100_000)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_all)
            await writer.write(b"c\n")
            writer.close()
    assert received == b"a" * 1_000_000 + b"\nc\n"


async def test_closing_ends_a_writer_that_waits(pipe: tuple[int, int]) -> None:
    read, write = pipe
    writer = PipeWriter(write)
    failed = 0

    async def write_on() -> None:
        nonlocal failed
        with pytest.raises(BrokenPipeError):
            await writer.write(b"x" * 1_000_000)
        failed += 1

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_on)
            tasks.start_soon(write_on)
            await anyio.wait_all_tasks_blocked()
            writer.close()
            writer.close()
    assert failed == 2
    os.close(read)


async def test_a_reader_that_goes_away_ends_the_writers_that_wait(pipe: tuple[int, int]) -> None:
    read, write = pipe
    writer = PipeWriter(write)

    async def write_on() -> None:
        with pytest.raises(BrokenPipeError):
            await writer.write(b"x" * 1_000_000)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_on)
            await anyio.wait_all_tasks_blocked()
            os.close(read)
    with pytest.raises(BrokenPipeError):
        await writer.write(b"x")
    writer.close()


async def test_a_reader_gets_what_is_there_and_the_end_once_closed(pipe: tuple[int, int]) -> None:
    read, write = pipe
    reader = PipeReader(read)
    assert reader.read_nowait() is None
    os.write(write, b"abc")
    assert await reader.read() == b"abc"
    seen: list[bytes] = []

    async def wait() -> None:
        seen.append(await reader.read())

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            reader.close()
    reader.close()
    assert seen == [b""]
    assert await reader.read() == b""
    os.close(write)
