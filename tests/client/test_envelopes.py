"""What the client reads of an envelope, as a table."""

from __future__ import annotations

import pytest

from sandbox_agent import AcpRpcError
from sandbox_agent.client.envelopes import Answer, decode, request, response
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError


@pytest.mark.parametrize(
    ("line", "raw_id", "method", "session", "kind"),
    [
        (b'{"id":3,"result":{}}', b"3", None, None, None),
        (b'{"result":{},"id":"x"}', b'"x"', None, None, None),
        (
            b'{"method":"session/update","params":{"sessionId":"a","update":{"sessionUpdate":"plan"}}}',
            b"",
            "session/update",
            "a",
            "plan",
        ),
        (b'{"method":"m","params":[1]}', b"", "m", None, None),
        (b'{"method":"m","params":null}', b"", "m", None, None),
        (b'{"method":"m","params":{"sessionId":7,"update":"x"}}', b"", "m", None, None),
        (b'{"method":"m","params":{"sessionId":"a","update":{"sessionUpdate":5}}}', b"", "m", "a", None),
        (b'{"id":null,"method":"m"}', b"null", "m", None, None),
        (b'{"id":0,"method":"m","params":{"sessionId":"\\ud800"}}', b"0", "m", "\ud800", None),
    ],
)
def test_an_envelopes_head_is_read(
    line: bytes, raw_id: bytes, method: str | None, session: str | None, kind: str | None
) -> None:
    head = decode(line)
    assert (bytes(head.id), head.method, head.session_id) == (raw_id, method, session)
    update = head.params.update if head.params else None
    assert (update.sessionUpdate if update else None) == kind


@pytest.mark.parametrize(
    ("line", "is_request", "is_response", "own"),
    [
        (b'{"id":0,"method":"m"}', True, False, 0),
        (b'{"id":"u","method":"m"}', True, False, None),
        (b'{"id":null,"method":"m"}', False, False, None),
        (b'{"method":"m"}', False, False, None),
        (b'{"id":12,"result":null}', False, True, 12),
        (b'{"id":-1,"error":{}}', False, True, None),
        (b'{"id":1.5,"result":{}}', False, True, None),
    ],
)
def test_requests_and_responses_are_told_apart(
    line: bytes, is_request: bool, is_response: bool, own: int | None
) -> None:
    head = decode(line)
    assert (head.is_request, head.is_response, head.own_id()) == (is_request, is_response, own)


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b"{", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidEnvelopeError):
        decode(line)


def test_an_error_answer_raises_with_its_code_and_data() -> None:
    answer = Answer.read(b'{"id":1,"error":{"code":-32000,"message":"who are you","data":[1]}}')
    with pytest.raises(AcpRpcError, match="Authentication required: who are you") as caught:
        answer.unwrap()
    assert (caught.value.code, caught.value.data, caught.value.rpc_message) == (-32000, [1], "who are you")


def test_an_error_without_code_or_message_raises_all_the_same() -> None:
    with pytest.raises(AcpRpcError, match="without a message"):
        Answer.read(b'{"id":1,"error":{}}').unwrap()


@pytest.mark.parametrize("raw_id", [b"0", b'"a-b"', b"null", b"[1, 2]"])
def test_an_answer_carries_the_id_as_it_came(raw_id: bytes) -> None:
    head = decode(b'{"id":%b,"method":"m"}' % raw_id)
    assert response(head.id, result={}) == b'{"jsonrpc":"2.0","id":%b,"result":{}}' % raw_id


def test_a_request_is_one_line() -> None:
    assert (
        request(1, "m", {"text": "a\nb"})
        == b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"text":"a\\nb"}}'
    )
