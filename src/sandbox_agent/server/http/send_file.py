"""Sends a part of a file as a part of a response, from a thread and through one small buffer.

This is faster than ASGI's messages, which take a thread and a new piece of memory for each megabyte, and
than the kernel's sendfile, which sends page by page. The protocol offers it to the application in the
extensions of a scope, under the name SEND_FILE.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync

SEND_FILE: Final = "sandbox_agent.send_file"
# Called with a descriptor, where the part begins and where it ends; returns where the rest begins, which has
# to be sent in another way.
SendFile = Callable[[int, int, int], Awaitable[int]]

# Stays in the processor's cache between a read and a write.
_BUFFER_BYTES: Final = 128 * 1024
# What one call in a thread sends at most, so that others have their turn.
_MOST_BYTES: Final = 32 * 1024 * 1024
# How long a thread waits for a client. One that reads more slowly is waited for by the event loop.
_PATIENCE_MS: Final = 10


def offer_file_sending(cycle: Any, seconds: float) -> None:
    """Offer it for a request.

    Args:
        cycle: uvicorn's cycle of the request.
        seconds: a client that reads nothing for so long is disconnected.
    """
    if cycle.transport.get_extra_info("sslcontext") is None:

        async def send_file(descriptor: int, start: int, end: int) -> int:
            return await _send_file(cycle, seconds, descriptor, start, end)

        cycle.scope.setdefault("extensions", {})[SEND_FILE] = send_file


async def _send_file(cycle: Any, seconds: float, descriptor: int, start: int, end: int) -> int:
    transport: asyncio.Transport = cycle.transport
    await asyncio.sleep(0)  # uvloop writes at the end of a round
    if cycle.disconnected or transport.is_closing() or transport.get_write_buffer_size():
        return start  # the head, or an earlier response, has to be read first
    # A copy: the event loop does not let a transport's own descriptor be watched.
    connection = os.dup(transport.get_extra_info("socket").fileno())
    try:
        at = start
        while at < end and not (cycle.disconnected or transport.is_closing()):
            before, (at, is_full) = at, await run_sync(_send, connection, descriptor, at, end)
            cycle.expected_content_length -= at - before
            if is_full:
                try:
                    with anyio.fail_after(seconds):
                        await _wait_writable(connection)
                except TimeoutError:
                    transport.abort()
            elif at == before:
                break
        return at
    finally:
        os.close(connection)


def _send(connection: int, descriptor: int, start: int, end: int) -> tuple[int, bool]:
    """Return where the rest begins, and whether the client has to read first."""
    waiting = select.poll()
    waiting.register(connection, select.POLLOUT)
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    os.lseek(descriptor, start, os.SEEK_SET)
    end = min(end, start + _MOST_BYTES)
    while start < end:
        data = buffer[: os.readv(descriptor, [buffer[: end - start]])]
        if not data:
            break  # the file has become shorter
        while data:
            try:
                written = os.write(connection, data)
            except BlockingIOError:
                if not waiting.poll(_PATIENCE_MS):
                    return start, True
            except OSError:
                return start, False  # the connection is lost, which the transport notices, too
            else:
                start += written
                data = data[written:]
    return start, False


async def _wait_writable(connection: int) -> None:
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(connection, lambda: writable.done() or writable.set_result(None))
    try:
        await writable
    finally:
        loop.remove_writer(connection)
