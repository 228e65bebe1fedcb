"""Line framing: the same lines however the bytes are cut, and no more memory than one line."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox_agent.engine.ndjson import OVERSIZED_PREFIX_BYTES, LineFramer, OversizedLine
from sandbox_agent.wire.jsonrpc import read_heads

LIMIT = 24

# Mostly what matters to a framer: line ends, spaces, UTF-8 halves.
soup = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b" ", b"{}", b"\xff", b"\xc3", b"x" * 7, b"\0"])).map(
    b"".join
) | st.binary(max_size=200)


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(min(index, len(data)) for index in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def frame(pieces: Iterable[bytes], limit: int = LIMIT) -> list[tuple[bytes, int | None]]:
    """Return the lines; of one that was too long the part that is always kept, and the whole's size."""
    framer = LineFramer(max_line_bytes=limit)
    lines = [line for piece in pieces for line in framer.feed(piece)] + framer.finish()
    return [
        (line[:limit], line.size) if isinstance(line, OversizedLine) else (bytes(line), None)
        for line in lines
    ]


def reference(data: bytes, limit: int = LIMIT) -> list[tuple[bytes, bool]]:
    lines: list[tuple[bytes, bool]] = []
    for whole in data.split(b"\n"):
        line = whole.removesuffix(b"\r")
        if len(line) > limit:
            lines.append((line[:limit], True))
        elif line.strip():
            lines.append((line, False))
    return lines


@given(data=soup, at=st.lists(st.integers(0, 200), max_size=8))
@example(data=b"x" * LIMIT + b"\r\n", at=[LIMIT])
@example(data=b"x" * (LIMIT + 1) + b"\n", at=[LIMIT + 1])
@example(data=b"x" * (LIMIT + 1) + b"\r\n", at=[3, 5, LIMIT, LIMIT + 1])
@example(data=b" " * (LIMIT + 5) + b"\n", at=[LIMIT])
def test_the_framer_gives_the_reference_lines_however_the_bytes_are_cut(data: bytes, at: list[int]) -> None:
    framed = frame(cut(data, at))
    assert [(line, size is not None) for line, size in framed] == reference(data)


@given(data=soup)
def test_the_framer_gives_the_same_lines_when_fed_byte_by_byte(data: bytes) -> None:
    framed = frame(data[index : index + 1] for index in range(len(data)))
    assert [(line, size is not None) for line, size in framed] == reference(data)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\r\n \t\n", []),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"a\rb\n", [b"a\rb"]),
        (b"a\r\r\n", [b"a\r"]),
        (b"\xff\xfe\n\xc3\x28\n", [b"\xff\xfe", b"\xc3\x28"]),
        (b" {} \n", [b" {} "]),
        (b"\0\n", [b"\0"]),
    ],
)
def test_the_framer_splits_as_the_table_says(data: bytes, lines: list[bytes]) -> None:
    assert [line for line, _ in frame([data])] == lines


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("in_one_piece", [True, False])
def test_the_framer_takes_a_line_of_exactly_the_limit_and_refuses_one_more(
    end: bytes, in_one_piece: bool
) -> None:
    def lines(size: int) -> list[tuple[bytes, int | None]]:
        data = b"x" * size + end + b"next\n"
        return frame([data] if in_one_piece else [data[:5], data[5:size], data[size:]])

    assert lines(LIMIT) == [(b"x" * LIMIT, None), (b"next", None)]
    (first, size), following = lines(LIMIT + 1)
    assert first == b"x" * LIMIT
    assert size is not None
    assert size >= LIMIT + 1
    assert following == (b"next", None)


def test_the_framer_says_how_long_an_oversized_line_was() -> None:
    framer = LineFramer(max_line_bytes=10)
    assert [line for _ in range(1000) for line in framer.feed(b"y" * 100)] == []
    (line,) = framer.feed(b"\n")
    assert isinstance(line, OversizedLine)
    assert line.size == 100_000
    assert len(line) <= OVERSIZED_PREFIX_BYTES
    assert framer.feed(b"ok\n") == [b"ok"]


def test_the_framer_holds_no_more_than_the_limit_when_a_line_never_ends() -> None:
    framer = LineFramer(max_line_bytes=1_000_000)
    piece = b"z" * 65536
    tracemalloc.start()
    try:
        for _ in range(200):
            framer.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


def test_the_framer_costs_a_line_its_bytes_when_it_comes_in_tiny_pieces() -> None:
    framer = LineFramer(max_line_bytes=1_000_000)
    tracemalloc.start()
    try:
        for index in range(150_000):
            framer.feed(b"%03d" % (index % 1000))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000
    (line,) = framer.feed(b"\n")
    assert len(line) == 450_000


@pytest.mark.parametrize("rest", [b" ", b"x"])
def test_what_is_left_of_a_line_that_is_too_long_is_never_taken_for_a_message(rest: bytes) -> None:
    whole = b'{"method":"m"' + b" " * (OVERSIZED_PREFIX_BYTES - 14) + b"}"
    assert read_heads([whole]) is not None
    framer = LineFramer(max_line_bytes=2 * OVERSIZED_PREFIX_BYTES)
    (cut,) = framer.feed(whole + rest * 2 * OVERSIZED_PREFIX_BYTES + b"\n")
    assert isinstance(cut, OversizedLine)
    assert read_heads([cut]) is None
    assert read_heads([cut, b'{"method":"m"}']) is None
