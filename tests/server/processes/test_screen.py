"""What a viewer that joins later sees is what the first one sees."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.server.processes import screen as screens
from sandbox_agent.server.processes.screen import IDLE_BYTES, KEEP_BYTES, Screen

COLS, ROWS = 40, 10


class Seen(pyte.Screen):
    """A terminal of a viewer, with what an emulator of its own knows."""

    def __init__(self, *outputs: bytes, cols: int = COLS, rows: int = ROWS) -> None:
        super().__init__(cols, rows)
        stream = pyte.ByteStream(self)
        for output in outputs:
            stream.feed(output)

    @property
    def cells(self) -> list[list[pyte.screens.Char]]:
        return [[self.buffer[y][x] for x in range(self.columns)] for y in range(self.lines)]


async def drawn(*outputs: bytes, cols: int = COLS, rows: int = ROWS) -> bytes:
    """Return how the screen is drawn for a viewer that joins after all of the output."""
    screen = Screen(cols, rows)
    for output in outputs:
        screen.feed(output)
    screen.close()
    async with screen.lock:
        return await screen.draw()


SIMPLE = {
    "nothing": b"",
    "a prompt": b"$ ",
    "lines that scroll": b"".join(b"line %d\r\n" % n for n in range(100)),
    "long lines": b"x" * 95 + b"\r\ny",
    "colors": b"\x1b[1;31mred\x1b[0m \x1b[38;5;200mpink\x1b[m \x1b[48;2;1;2;3mdark\x1b[7mback",
    "bright colors": b"\x1b[93mone\x1b[101mtwo\x1b[33;44mthree",
    "a cursor in the middle": b"abc\r\ndef\x1b[1;2H",
    "a hidden cursor": b"\x1b[?25labc",
    "margins": b"\x1b[3;6r\x1b[3;1Hone\r\ntwo\r\nthree\r\nfour\r\nfive",
    "wide characters": "日本語 ok\r\ne\u0301".encode(),
    "erased": b"abc\r\n" * 8 + b"\x1b[2J\x1b[4;4Hx",
    "tabs and backspaces": b"a\tb\x08c\r\n\td",
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", SIMPLE)
async def test_a_viewer_that_joins_sees_the_same_screen(name: str) -> None:
    first, later = Seen(SIMPLE[name]), Seen(await drawn(SIMPLE[name]))
    assert later.cells == first.cells
    assert (later.cursor.x, later.cursor.y, later.cursor.hidden) == (
        min(first.cursor.x, COLS - 1),
        first.cursor.y,
        first.cursor.hidden,
    )
    assert later.cursor.attrs == first.cursor.attrs
    assert later.margins == first.margins


@pytest.mark.anyio
async def test_a_blank_screen_is_not_drawn() -> None:
    assert await drawn() == b""


@pytest.mark.anyio
async def test_an_editors_screen_is_drawn_and_what_was_before_it_comes_back_after_it() -> None:
    shell, editor = b"$ ls\r\nfile\r\n$ vi\r\n", b"\x1b[?1049h\x1b[H\x1b[2J~ editor\r\n~"
    joined = await drawn(shell + editor)
    assert b"\x1b[?1049h" in joined
    assert Seen(joined.partition(b"\x1b[?1049h")[2]).display[0].startswith("~ editor")
    assert Seen(joined.partition(b"\x1b[?1049h")[0]).display[:3] == Seen(shell).display[:3]
    after = Seen(await drawn(shell + editor + b"\x1b[?1049l$ "))
    assert after.display == Seen(shell + b"$ ").display


@pytest.mark.anyio
async def test_modes_are_set_for_a_viewer_that_joins() -> None:
    joined = await drawn(b"\x1b[?2004h\x1b[?1h\x1b[?1000;1006h\x1b[?7l")
    for mode in (b"?2004h", b"?1h", b"?1000h", b"?1006h", b"?7l"):
        assert b"\x1b[" + mode in joined
    assert await drawn(b"\x1b[?2004h\x1b[?2004l") == b""


# Sequences that pyte does not know, or fails with.
UNKNOWN = [
    b"\x1b[>4;1m",
    b"\x1b[<u",
    b"\x1b[=1u",
    b"\x1b[2 q",
    b"\x1b[!p",
    b"\x1b[?1m",
    b"\x1b[1;2;3A\x1b[B",
    b"\x1b]0;a title\x07",
    b"\x1b]8;;http://x\x1b\\",
    b"\x1bP+q544e\x1b\\",
    b"\x1b_Gi=1;AAAA\x1b\\",
    b"\x1b[c\x1b[6n",
]


@pytest.mark.anyio
@pytest.mark.parametrize("sequence", UNKNOWN)
async def test_a_sequence_that_draws_nothing_leaves_no_trace(sequence: bytes) -> None:
    seen = Seen(await drawn(b"\r\nab" + sequence + b"cd"))
    assert seen.display[1].rstrip() == "abcd"
    assert seen.cells[1][2].underscore is False
    for cut in range(len(sequence)):
        screen = Screen(COLS, ROWS)
        screen.feed(b"\r\nab" + sequence[:cut])
        async with screen.lock:
            parts = [await screen.draw()]
            screen.feed(sequence[cut:] + b"cd")
            parts.append(await screen.draw())
        assert Seen(parts[1]).display[1].rstrip() == "abcd", cut


@pytest.mark.anyio
async def test_attributes_with_colons_are_drawn() -> None:
    seen = Seen(await drawn(b"\x1b[4:3mcurly\x1b[4:0m \x1b[38:2::1:2:3mrgb\x1b[48:5:9mindex"))
    assert seen.cells[0][0].underscore
    assert not seen.cells[0][5].underscore
    assert seen.cells[0][6].fg == "010203"
    assert seen.cells[0][10].bg == "ff0000"


@pytest.mark.anyio
async def test_a_string_that_never_ends_does_not_grow_without_a_bound() -> None:
    screen = Screen(COLS, ROWS)
    screen.feed(b"\r\nab\x1bPq")
    async with screen.lock:
        for _ in range(10):
            screen.feed(b"#0;2;0;0;0~" * 10_000)
            await screen.draw()
        assert len(screen.raw) <= 64 * 1024
        screen.feed(b"~~\x1b\\cd")
        assert Seen(await screen.draw()).display[1].rstrip() == "abcd"
    screen.close()


@pytest.mark.anyio
async def test_after_much_output_the_screen_is_right_and_memory_is_bounded() -> None:
    screen = Screen(COLS, ROWS)
    screen.feed(b"\x1b[?2004h\x1b[32m")
    for n in range(200):
        screen.feed(b"".join(b"line %d\r\n" % line for line in range(n * 1000, n * 1000 + 1000)))
        assert len(screen.raw) <= KEEP_BYTES
    screen.close()
    async with screen.lock:
        output = await screen.draw()
    seen = Seen(output)
    assert [line.rstrip() for line in seen.display] == [*(f"line {n}" for n in range(199_991, 200_000)), ""]
    assert seen.cells[0][0].fg == "green"
    assert b"\x1b[?2004h" in output


@pytest.mark.anyio
async def test_much_output_that_moves_the_cursor_shows_what_was_drawn_last() -> None:
    frame = b"\x1b[H\x1b[2J" + b"".join(b"\x1b[%d;1Hframe %%d" % row for row in range(1, ROWS + 1))
    screen = Screen(COLS, ROWS)
    for n in range(10_000):
        screen.feed(frame.replace(b"%d", b"%d" % n))
    screen.close()
    async with screen.lock:
        assert Seen(await screen.draw()).display == [f"{'frame 9999':{COLS}}"] * ROWS


@pytest.mark.anyio
async def test_the_timer_applies_what_a_slow_program_draws_before_it_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part of the screen that was drawn long ago is not lost."""
    monkeypatch.setattr(screens, "TICK_SECONDS", 0)
    screen = Screen(COLS, ROWS)
    screen.feed(b"\x1b[H\x1b[2Jtitle")
    step = b"\x1b[5;5H%d" * 100
    with anyio.fail_after(60):
        for n in range(2 * KEEP_BYTES // len(step)):
            screen.feed(step % tuple(range(n, n + 100)))
            while len(screen.raw) > 2 * IDLE_BYTES:
                await anyio.lowlevel.checkpoint()
    screen.close()
    async with screen.lock:
        assert Seen(await screen.draw()).display[0].startswith("title")


@pytest.mark.anyio
async def test_the_size_is_bounded() -> None:
    screen = Screen(65_535, 65_535)
    screen.resize(0, 0)
    screen.feed(b"a")
    async with screen.lock:
        assert Seen(await screen.draw()).display[0].rstrip() == "a"
    screen.resize(65_535, 65_535)
    screen.feed(b"\x1b[9999;9999Hz")
    async with screen.lock:
        assert (await screen.draw()).count(b"z") == 1


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_output_fails(outputs: list[bytes]) -> None:
    async def run() -> None:
        screen = Screen(COLS, ROWS)
        for output in outputs:
            screen.feed(output)
            async with screen.lock:
                await screen.draw()

    anyio.run(run)


@pytest.mark.anyio
async def test_combining_characters_on_one_cell_are_bounded() -> None:
    """pyte would keep all of them, and normalize them with each other one."""
    screen = Screen(COLS, ROWS)
    screen.feed(b"e" + "\u0301".encode() * 20_000)
    for _ in range(20):
        screen.feed(b"\x1b[m" + "\u0301".encode() * 10)
    async with screen.lock:
        output = await screen.draw()
    screen.close()
    assert len(output.decode()) < 60
    assert "\u00e9" in output.decode()


@pytest.mark.anyio
async def test_saved_cursors_do_not_accumulate() -> None:
    screen = Screen(COLS, ROWS)
    screen.feed(b"\x1b7" * 10_000 + b"\x1b[5;5Hat\x1b8home")
    async with screen.lock:
        output = await screen.draw()
    screen.close()
    assert len(screen._emulator.savepoints) <= 1  # pyright: ignore[reportPrivateUsage]
    assert Seen(output).display[0].startswith("home")


@pytest.mark.anyio
async def test_8_bit_controls_swallow_nothing() -> None:
    """In UTF-8, terminals do not take them for the beginning of a title or a sequence."""
    output = await drawn("a\u009db\u009bc\r\nd".encode())
    assert [line.rstrip() for line in Seen(output).display[:2]] == ["abc", "d"]
    # Also if one is divided.
    output = await drawn(b"x" * (screens.SLICE_BYTES - 1) + "\u009dend".encode(), cols=1000, rows=5)
    assert Seen(output, cols=1000, rows=5).display[1].rstrip().endswith("xend")
