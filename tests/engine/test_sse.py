"""Server-sent events: what we encode is what any decoder reads, and we read what the standard says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.engine.sse import (
    SseDecoder,
    SseEvent,
    SseTooLargeError,
    cut_after,
    encode_comment,
    encode_event,
    encode_messages,
    encode_retry,
)


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(min(index, len(data)) for index in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def decode(pieces: Iterable[bytes]) -> list[SseEvent]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def reference(data: bytes) -> list[SseEvent]:
    """Section 9.2.6 of the HTML standard, line by line, as it is written there."""
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[SseEvent] = []
    buffer, name, given_id = b"", b"", None
    lines = data.split(b"\n")[:-1]
    for line in lines:
        if not line:
            if buffer:
                label = name.decode("utf-8", "replace") or "message"
                events.append(SseEvent(label, given_id, buffer[:-1]))
            buffer, name, given_id = b"", b"", None
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            buffer += value + b"\n"
        elif field == b"event":
            name = value
        elif field == b"id" and b"\0" not in value:
            given_id = value.decode("utf-8", "replace")
    return events


TABLE: list[tuple[bytes, list[SseEvent]]] = [
    (b"data: a\n\n", [SseEvent("message", None, b"a")]),
    (b"data:a\n\n", [SseEvent("message", None, b"a")]),
    (b"data:  a\n\n", [SseEvent("message", None, b" a")]),
    (b"data\n\n", [SseEvent("message", None, b"")]),
    (b"data\ndata\n\n", [SseEvent("message", None, b"\n")]),
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [SseEvent("message", None, b"YHOO\n+2\n10")]),
    (b": a comment\n\n", []),
    (b":\ndata: a\n:\n\n", [SseEvent("message", None, b"a")]),
    (b"event: reset\nid: 0\ndata: {}\n\n", [SseEvent("reset", "0", b"{}")]),
    (b"event: x\n\ndata: a\n\n", [SseEvent("message", None, b"a")]),
    (b"id: 1\0\ndata: a\n\n", [SseEvent("message", None, b"a")]),
    (b"id\ndata: a\n\n", [SseEvent("message", "", b"a")]),
    (b"unknown: 1\nDATA: no\ndata: a\n\n", [SseEvent("message", None, b"a")]),
    (b"data: a\r\rdata: b\r\n\r\n", [SseEvent("message", None, b"a"), SseEvent("message", None, b"b")]),
    (b"data: a\r\n\rdata: b\n\r", [SseEvent("message", None, b"a"), SseEvent("message", None, b"b")]),
    (b"\xef\xbb\xbfdata: a\n\n", [SseEvent("message", None, b"a")]),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    (b"\n\n\ndata: a\n\n\n\n", [SseEvent("message", None, b"a")]),
    (b"data: unfinished\n", []),
    (b"data: \xff\xfe\n\n", [SseEvent("message", None, b"\xff\xfe")]),
]


@pytest.mark.parametrize(("data", "events"), TABLE)
def test_the_decoder_reads_as_the_standard_says_whole_and_byte_by_byte(
    data: bytes, events: list[SseEvent]
) -> None:
    assert decode([data]) == events
    assert decode(data[index : index + 1] for index in range(len(data))) == events
    assert reference(data) == events


stream = st.lists(
    st.sampled_from(
        [
            b"data",
            b"id",
            b"event",
            b":",
            b" ",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"x",
            b"\xef\xbb\xbf",
            b"\0",
            b"7",
        ]
    )
).map(b"".join)


@given(data=stream, at=st.lists(st.integers(0, 100), max_size=8))
def test_the_decoder_gives_the_reference_events_however_the_bytes_are_cut(data: bytes, at: list[int]) -> None:
    assert decode(cut(data, at)) == reference(data)


envelopes = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ),
    max_size=6,
)


@given(lines=envelopes, first=st.integers(1, 10**12), at=st.lists(st.integers(0, 400), max_size=8))
def test_a_decoder_gets_each_envelope_byte_for_byte_with_its_sequence_as_id(
    lines: list[bytes], first: int, at: list[int]
) -> None:
    data = encode_retry(500) + encode_comment("hello") + encode_messages(first, lines)
    expected = [SseEvent("message", str(first + index), line) for index, line in enumerate(lines)]
    assert decode(cut(data, at)) == expected


def test_a_raw_carriage_return_between_tokens_becomes_a_space_and_stays_one_event() -> None:
    (event,) = decode([encode_messages(1, [b'{"a":\r1}'])])
    assert event.data == b'{"a": 1}'


@given(count=st.integers(1, 12), first=st.integers(1, 30), after=st.integers(0, 50))
def test_cut_after_leaves_exactly_the_events_behind_the_sequence(count: int, first: int, after: int) -> None:
    lines = [b'{"id":%d,"text":"id: %d"}' % (number, number) for number in range(count)]
    data = encode_messages(first, lines)
    if not first <= after < first + count:
        assert cut_after(data, after) == data
    else:
        expected = [str(number) for number in range(after + 1, first + count)]
        assert [event.id for event in decode([cut_after(data, after)])] == expected


def test_the_decoder_remembers_the_last_id_and_the_retry_time() -> None:
    decoder = SseDecoder()
    decoder.feed(b"retry: 1500\nid: 7\n\nretry: soon\n\n" + encode_event("x", b"{}", event_id=9))
    assert decoder.retry_ms == 1500
    assert decoder.last_event_id == "9"
    decoder.feed(b"data: without an id\n\nid: 8\0\n\n")
    assert decoder.last_event_id == "9"


def test_the_decoder_gives_an_event_that_ends_in_a_lone_cr_at_once() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\r\r") == [SseEvent("message", None, b"a")]
    assert decoder.feed(b"\ndata: b\r\n\r\n") == [SseEvent("message", None, b"b")]


def test_the_decoder_refuses_an_event_over_its_limit() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    for _ in range(6):  # 96 bytes
        assert decoder.feed(b"data: 012345678\n") == []
    with pytest.raises(SseTooLargeError):
        decoder.feed(b"data: 012345678\n")


def test_the_decoder_takes_any_number_of_events_under_its_limit() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    data = encode_messages(1, [b'{"a":1}'] * 50)
    assert len(decoder.feed(data)) == 50
