"""Fuzz: any bytes are either taken or refused with a documented exception, and never break what follows."""

from __future__ import annotations

import random

import pytest

from sandbox_agent.engine.correlate import Correlator
from sandbox_agent.engine.ndjson import LineFramer, OversizedLine
from sandbox_agent.engine.sse import SseDecoder, SseTooLargeError, encode_messages
from sandbox_agent.wire.jsonrpc import Head, InvalidEnvelopeError, read_head, replace_id

EXAMPLES = 4000
SEEDS: list[bytes] = [
    b'{"jsonrpc":"2.0","id":1,"method":"session/prompt","params":{"a":[1,2,{"b":"\\ud83d\\ude00"}]}}',
    b'{"result":{"stopReason":"end_turn"},"id":"a-\xc3\xa9","jsonrpc":"2.0"}',
    b'{"jsonrpc":"2.0","method":"session/update","params":{"text":"\xf0\x9f\x98\x80 \\u0000"}}',
    b'{"id":1e2,"error":{"code":-32603,"message":"x","data":null}}',
    b'{"id":null,"method":"x"}',
]
TOKENS = [
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\ud800", b"1e999", b"-", b"\n", b"\r", b"\0"),
    *(b"\xff", b"\xef\xbb\xbf", b'"id":', b'"method":', b"null", b"NaN", b"[" * 3000, b"9" * 5000),
    *(b"data: ", b"id: 1\n", b"event:", b"retry: 9999999999999\n", b"\n\n", b"\r\n\r\n"),
]


def mutate(rng: random.Random, data: bytes) -> bytes:
    mutated = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(mutated) + 1)
        what = rng.randrange(4)
        if what == 0:
            mutated[place:place] = rng.choice(TOKENS)
        elif what == 1:
            del mutated[place : place + rng.randrange(1, 9)]
        elif what == 2:
            mutated[place : place + 1] = bytes([rng.randrange(256)])
        else:
            mutated[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(mutated)


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_line_is_an_envelope_or_refused_and_the_next_line_is_read(seed: int) -> None:
    rng = random.Random(seed)
    accepted = refused = 0
    framer = LineFramer(max_line_bytes=8192)
    correlator = Correlator()
    for _ in range(EXAMPLES):
        data = mutate(rng, rng.choice(SEEDS))
        lines: list[bytes] = []
        while data:
            size = rng.randrange(1, 100)
            lines += framer.feed(data[:size])
            data = data[size:]
        lines += framer.feed(b'\n{"id":"sentinel"}\n')
        assert lines.pop() == b'{"id":"sentinel"}'
        for line in lines:
            try:
                if isinstance(line, OversizedLine):
                    raise InvalidEnvelopeError("too long")
                head = read_head(line)
                assert isinstance(head, Head)
                if head.id:
                    assert bytes(read_head(replace_id(line, b"77")).id) == b"77"
                correlator.submit("", head, line)
                correlator.match_response(head, line)
                accepted += 1
            except InvalidEnvelopeError:
                refused += 1
    assert accepted > EXAMPLES // 20
    assert refused > EXAMPLES // 20


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_stream_of_events_is_read_or_refused_and_reads_on(seed: int) -> None:
    rng = random.Random(1000 + seed)
    events = refused = 0
    for _ in range(EXAMPLES // 4):
        decoder = SseDecoder(max_event_bytes=20_000)
        data = mutate(rng, encode_messages(1, rng.choices(SEEDS, k=3)))
        try:
            while data:
                size = rng.randrange(1, 200)
                events += len(decoder.feed(data[:size]))
                data = data[size:]
            found = decoder.feed(b"\n\n\ndata: sentinel\n\n")
        except SseTooLargeError:
            refused += 1
        else:
            assert found[-1].data == b"sentinel"
    assert events > EXAMPLES // 4
    assert refused < EXAMPLES // 8


def test_random_bytes_never_stop_the_framer_or_the_decoder() -> None:
    rng = random.Random(7)
    framer, decoder = LineFramer(max_line_bytes=1000), SseDecoder()
    for _ in range(EXAMPLES):
        noise = rng.randbytes(rng.randrange(300))
        framer.feed(noise)
        decoder.feed(noise)
    assert framer.feed(b"\nlast\n")[-1] == b"last"
    assert decoder.feed(b"\n\ndata: last\n\n")[-1].data == b"last"
