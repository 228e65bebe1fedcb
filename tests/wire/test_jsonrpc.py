"""Envelopes: the head is read, the rest stays as the bytes that came."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads, read_head, replace_id
from sandbox_agent.wire.records import SessionRecord

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("line", "raw_id", "method", "is_request", "is_response"),
    [
        (b'{"id":1,"method":"m"}', b"1", "m", True, False),
        (b'{"method":"m","id":"a"}', b'"a"', "m", True, False),
        (b'{"method":"m"}', b"", "m", False, False),
        (b'{"method":"m","id":null}', b"null", "m", False, False),
        (b'{"result":{},"id":0}', b"0", None, False, True),
        (b'{"id":null,"error":{}}', b"null", None, False, True),
        (b'{"id":1,"method":null,"result":1}', b"1", None, False, True),
        (b"{}", b"", None, False, False),
        (b' { "id" : 1.50 } ', b"1.50", None, False, True),
        (b'{"method":"\\u006d"}', b"", "m", False, False),
        (b'{"text":"\\ud800","id":3}', b"3", None, False, True),
        (b'{"id":"\\ud800"}', b'"\\ud800"', None, False, True),
    ],
)
def test_the_head_says_what_kind_of_envelope_it_is(
    line: bytes, raw_id: bytes, method: str | None, is_request: bool, is_response: bool
) -> None:
    head = read_head(line)
    assert (bytes(head.id), head.method, head.is_request, head.is_response) == (
        raw_id,
        method,
        is_request,
        is_response,
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'[{"method":"m"}]',
        b'"text"',
        b"1",
        b"{",
        b"{}}",
        b"{} {}",
        b'{"method":1}',
        b'{"method":["m"]}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":"\x01"}',
        b'{"a":"\xff"}',
        b'{"method":"\xff"}',
        b'{"\xff":1}',
        b'{"id":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_line_that_is_no_envelope_is_refused_with_the_documented_error(line: bytes) -> None:
    with pytest.raises(InvalidEnvelopeError) as caught:
        read_head(line)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidEnvelopeError):
        replace_id(b"[" + line, b"1")


@given(
    members=st.dictionaries(st.text(max_size=8), values, max_size=5),
    new_id=st.integers() | st.text(max_size=5),
)
def test_replacing_an_id_keeps_every_other_member(members: dict[str, Any], new_id: int | str) -> None:
    envelope = json.dumps(members).encode()
    replaced = replace_id(envelope, json.dumps(new_id).encode())
    assert json.loads(replaced) == {**members, "id": new_id}


def test_replacing_an_id_keeps_the_bytes_of_the_other_members() -> None:
    envelope = b'{"id":1,"params":{"n":1.000, "big":123456789012345678901234567890,"t":"\\u00e9"}}'
    assert replace_id(envelope, b'"x"') == (
        b'{"id":"x","params":{"n":1.000, "big":123456789012345678901234567890,"t":"\\u00e9"}}'
    )


def test_replacing_an_id_works_around_lone_surrogates() -> None:
    replaced = replace_id(b'{"id":1,"a\\ud800":"\\udfff"}', b"2")
    assert json.loads(replaced) == {"id": 2, "a\ud800": "\udfff"}


@given(value=values)
def test_what_is_dumped_is_loaded_as_it_was(value: Any) -> None:
    assert loads(dumps(value)) == value


@given(text=st.text(alphabet=st.characters(codec=None)))
def test_lone_surrogates_survive_dumping_and_loading(text: str) -> None:
    assert loads(dumps({"text": text})) == loads(json.dumps({"text": text}).encode())


def test_what_is_no_number_becomes_null_whatever_stands_beside_it() -> None:
    odd = [math.nan, math.inf, -math.inf]
    assert dumps([*odd, "a"]) == b'[null,null,null,"a"]'
    assert dumps([*odd, "\ud800"]) == b'[null,null,null,"\\ud800"]'


def test_lone_surrogates_in_a_record_survive_dumping() -> None:
    record = SessionRecord(
        id="\ud800",
        agent="a",
        agent_session_id="b",
        last_connection_id="c",
        created_at=1,
        modes={"m": "\udfff"},
    )
    assert msgspec.convert(loads(dumps({"record": record}))["record"], SessionRecord) == record
