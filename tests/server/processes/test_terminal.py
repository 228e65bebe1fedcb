"""Several viewers of one terminal: each has every byte, and the slowest one sets the pace."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sandbox_agent.server.processes.terminal import BEHIND_BYTES, PIECE_BYTES, Terminal, Viewer
from tests.server.processes.test_screen import Seen

pytestmark = pytest.mark.anyio


async def rest(viewer: Viewer) -> bytes:
    """Return all that a viewer of a terminal that has ended receives."""
    parts: list[bytes] = []
    with anyio.fail_after(20):
        while data := await viewer.read():
            parts.append(data)
    return b"".join(parts)


async def test_every_viewer_receives_all_output_in_pieces() -> None:
    terminal = Terminal()
    async with terminal.join() as one, terminal.join() as two:
        lines = [b"line %d\r\n" % n for n in range(20_000)]
        for line in lines:
            terminal.feed(line)
        terminal.end()
        assert len(await one.read()) <= PIECE_BYTES
        assert len(await rest(one)) > len(b"".join(lines)) - PIECE_BYTES
        assert await rest(two) == b"".join(lines)


async def test_the_first_viewer_receives_what_was_printed_before_it_joined_as_it_is() -> None:
    terminal = Terminal()
    terminal.feed(b"\x1b[c")
    terminal.feed(b"hello\r\n$ ")
    async with terminal.join() as viewer:
        terminal.feed(b"more")
        terminal.end()
        assert await rest(viewer) == b"\x1b[chello\r\n$ more"


async def test_later_viewers_receive_the_screen_and_then_every_byte() -> None:
    terminal = Terminal(40, 10)
    async with terminal.join() as first:
        for n in range(100):
            terminal.feed(b"line %d\r\n" % n)
        terminal.feed(b"\x1b[c$ ")
        async with terminal.join() as second:
            terminal.feed(b"echo hi")
            terminal.end()
            seen = await rest(second)
        assert (await rest(first)).endswith(b"line 99\r\n\x1b[c$ echo hi")
    assert b"line 1\r\n" not in seen
    assert b"\x1b[c" not in seen  # the first viewer's terminal has answered
    assert seen.endswith(b"echo hi")
    assert [line.rstrip() for line in Seen(seen).display] == [
        *(f"line {n}" for n in range(91, 100)),
        "$ echo hi",
    ]


async def test_output_while_a_viewer_joins_is_received_once() -> None:
    terminal = Terminal(40, 10)
    async with terminal.join():
        terminal.feed(b"\x1b[5;5H12345" * 10_000)
        joined: list[bytes] = []

        async def join() -> None:
            async with terminal.join() as viewer:
                joined.append(await rest(viewer))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(join)
            tasks.start_soon(join)
            for n in range(30):
                await checkpoint()
                terminal.feed(b"\x1b[6;1H%02d." % n)
            terminal.end()
    for seen in joined:
        assert Seen(seen).display[5].startswith("29.")
        live = seen[seen.rindex(b"\x1b[5;10H") if b"\x1b[5;10H" in seen else 0 :]
        numbers = [n for n in range(30) if b"\x1b[6;1H%02d." % n in live]
        assert numbers == list(range(numbers[0], 30))
        assert all(live.count(b"\x1b[6;1H%02d." % n) == 1 for n in numbers)


async def test_a_viewer_of_a_terminal_that_has_ended_sees_the_last_screen() -> None:
    terminal = Terminal(40, 10)
    async with terminal.join():
        terminal.feed(b"bye\r\n")
    terminal.end()
    async with terminal.join() as late:
        assert Seen(await rest(late)).display[0].rstrip() == "bye"
    empty = Terminal()
    empty.end()
    async with empty.join() as late:
        assert await rest(late) == b""


async def test_there_is_no_room_while_the_slowest_viewer_is_behind() -> None:
    terminal = Terminal()
    piece = b"x" * 1024
    async with terminal.join() as fast, terminal.join() as slow:
        fed = 0
        while terminal.feed(piece):
            fed += len(piece)
            await fast.read()
        assert fed < BEHIND_BYTES <= fed + len(piece)
        waited = anyio.Event()

        async def wait() -> None:
            await terminal.wait_room()
            waited.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await checkpoint()
            await fast.read()
            await checkpoint()
            assert not waited.is_set()
            await slow.read()
            with anyio.fail_after(10):
                await waited.wait()


async def test_a_viewer_that_leaves_makes_room_and_without_viewers_there_is_always_room() -> None:
    terminal = Terminal()
    async with terminal.join():
        while terminal.feed(b"x" * 1024):
            pass
    with anyio.fail_after(10):
        await terminal.wait_room()
    for _ in range(10_000):
        assert terminal.feed(b"x" * 1024)


@pytest.mark.parametrize("steps", [0, 1, 5])
async def test_a_viewer_that_leaves_while_it_joins_takes_nothing_with_it(steps: int) -> None:
    terminal = Terminal(40, 10)
    async with terminal.join():
        for n in range(2000):
            terminal.feed(b"\x1b[%d;5H%05d" % (n % 9 + 2, n))

    async def join() -> None:
        async with terminal.join():
            pytest.fail("it has joined")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(join)
        for _ in range(steps):
            await checkpoint()
        tasks.cancel_scope.cancel()
    assert terminal.feed(b"\x1b[1;1Hend")
    terminal.end()
    async with terminal.join() as late:
        screen = [line.strip() for line in Seen(await rest(late)).display]
    assert screen == ["end"] + [f"{n:05d}" for n in range(1998, 2000)] + [
        f"{n:05d}" for n in range(1991, 1998)
    ]
