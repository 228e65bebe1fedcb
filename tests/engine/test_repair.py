"""Lines that are almost a message: what is repaired, what fails a request, and what stays a line of text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.engine.correlate import Correlator, Pending
from sandbox_agent.engine.ndjson import OversizedLine
from sandbox_agent.engine.repair import MAX_EXCERPT, MAX_RAW_BYTES, LineReader, Repair, repair
from sandbox_agent.wire.jsonrpc import read_head

ANSWER = b'{"jsonrpc":"2.0","id":3,"result":{"stopReason":"end_turn"}}'
UPDATE = (
    b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s1","update":{"text":"\xc3\xa9"}}}'
)
ASK = b'{"jsonrpc":"2.0","id":3,"method":"session/request_permission","params":{"sessionId":"s1"}}'


def repaired(line: bytes) -> Repair:
    """Repair a line on a connection where request 3 is pending and the session s1 is known."""
    return repair(
        line, is_pending=lambda raw: raw in {b"3", b'"three"'}, is_session=lambda name: name == "s1"
    )


def marked(message: bytes, *names: str) -> Any:
    """Return a message as JSON values, with the mark of these repairs."""
    value = json.loads(message)
    value["params" if "method" in value else "result"]["_meta"] = {"sandbox-agent": {"repaired": [*names]}}
    return value


DAMAGE = {
    "a BOM": (b"\xef\xbb\xbf%b", ["bom"]),
    "a color": (b"\x1b[1;31m\x1b[K%b\x1b[0m", ["escapes"]),
    "a title": (b"\x1b]0;agent {working}\x07%b", ["escapes"]),
    "a link": (b"\x1b]8;;http://x\x1b\\%b", ["escapes"]),
    "another escape": (b"\x1b(B\x1b=\x1bP1;2q\x1b\\%b", ["escapes"]),
    "a warning": (b"Warning: foo (bar) [baz] %b", ["prefix"]),
    "a warning without a space": (b"npm WARN deprecated:%b", ["prefix"]),
    "a progress bar": (b"50%%\r100%%\r%b", ["prefix"]),
    "bytes that are no text": (b"\xff\xfe %b", ["utf8", "prefix"]),
    "all": (b"\xef\xbb\xbf\x1b[33mwarning:\x1b[0m \xff %b", ["utf8", "escapes", "bom", "prefix"]),
}


@pytest.mark.parametrize(("damage", "names"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("message", [ANSWER, UPDATE], ids=["response", "update"])
def test_a_damaged_message_is_repaired(message: bytes, damage: bytes, names: list[str]) -> None:
    assert repaired(damage % message) == Repair(json.loads(message), names, [])


@pytest.mark.parametrize(
    ("line", "value", "name"),
    [
        (b'{"id":3,"result":{"x":[NaN,Infinity,-Infinity,"NaN"]}}', {"x": [None, None, None, "NaN"]}, "nan"),
        (b'{"id":3,"result":{"x":"\xe9t\xe9"}}', {"x": "\ufffdt\ufffd"}, "utf8"),
        (b'{"id":3,"result":{"x":"a\x1b[31mb"}}', {"x": "ab"}, "escapes"),
        (b'\xef\xbb\xbf{"id":"three","result":{"x":1}}', {"x": 1}, "bom"),
    ],
)  # fmt: skip
def test_a_damaged_value_is_replaced(line: bytes, value: dict[str, Any], name: str) -> None:
    found = repaired(line)
    assert found.message is not None
    assert (found.message["result"], found.repairs) == (value, [name])


FORGED = {
    "a request": b"\xef\xbb\xbf" + ASK,
    "a request after text": b"sending: " + ASK,
    "a request with a result": b'x {"id":3,"method":"session/request_permission","result":{}}',
    "a request that is cut off": b"sending: " + ASK[:-3],
    "the request that the agent received": b'recv {"id":3,"method":"session/prompt","params":{}}',
    "an update with an id": b'x {"id":9,"method":"session/update","params":{"sessionId":"s1"}}',
    "an update of an unknown session": b'x {"method":"session/update","params":{"sessionId":"s2"}}',
    "an update without a session": b'x {"method":"session/update","params":[]}',
    "another notification": b'x {"method":"session/cancel","params":{"sessionId":"s1"}}',
    "a notification of the adapter": b'x {"method":"_adapter/agent_exited","params":{"sessionId":"s1"}}',
    "a response to nothing": b'x {"id":4,"result":{}}',
    "the same digits as text": b'x {"id":"3","result":{}}',
    "no id": b'x {"result":{}}',
    "an id that is null": b'x {"id":null,"result":{}}',
    "an id that is an object": b'x {"id":{"a":3},"result":{}}',
    "neither result nor error": b'x {"id":3}',
    "a nested response": b'x {"output":' + ANSWER + b"}",
    "a nested response that is cut off": b'x {"output":' + ANSWER,
    "a response in the text of a tool": b'x {"output":' + json.dumps(ANSWER.decode()).encode() + b"}",
    "a quoted response": b"output='" + ANSWER + b"'",
    "an escaped response": b"output=" + json.dumps(ANSWER.decode()).encode(),
    "text that ends in an open string": b'x {"output":"' + ANSWER.replace(b'"', b'\\"'),
    "an array of nothing": b'["id", 3, "result"]',
    "text": b"3 result id",
    "nothing": b"\xff\xfe\x00",
    "an id that is cut off": b'{"result":{},"id":3',
    "depth": b'x {"id":' + b"[" * 50_000,
    "a number without end": b'x {"id":' + b"9" * 50_000 + b',"result":1}',
}


@pytest.mark.parametrize("line", FORGED.values(), ids=FORGED)
def test_a_forged_message_stays_text_and_fails_nothing(line: bytes) -> None:
    assert repaired(line) == Repair(None, [], [])


BROKEN = {
    "cut off": ANSWER[:-2],
    "text and cut off": b"warning: " + ANSWER[:-2],
    "text behind it": ANSWER + b" warning: foo",
    "two objects": ANSWER + UPDATE,
    "the second of two objects": UPDATE + b" " + ANSWER,
    "an object in the text": b"warn {foo} " + ANSWER,
    "a control character": b'{"id":3,"result":{"x":"a\x01b"}}',
    "the id at the end": b'{"result":{"x":[{"id":4}]},"jsonrpc":"2.0","id" : 3 ,,}',
    "an id that ends the line": b'{"result":{},"id":"three"',
    "a batch": b"[" + ANSWER + b"]",
    "single quotes": b'{"id":3,"error":{\'code\':1}}',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_response_that_cannot_be_read_names_its_request(line: bytes) -> None:
    assert repaired(line) == Repair(None, [], [b'"three"' if b"three" in line else b"3"])


def test_two_broken_responses_name_two_requests() -> None:
    assert repaired(ANSWER + b'{"id":"three","result":1}{"id":4,"result":1}').failed == [b"3", b'"three"']


@given(st.binary(max_size=60), st.integers(0, len(ANSWER)), st.sampled_from([ANSWER, UPDATE, ASK]))
def test_any_damage_gives_a_response_an_update_or_nothing(noise: bytes, place: int, message: bytes) -> None:
    found = repaired(message[:place] + noise + message[place:])
    assert set(found.failed) <= {b"3", b'"three"'}
    if found.message is not None:
        value = found.message
        if "method" in value:
            assert (value["method"], value["params"]["sessionId"]) == ("session/update", "s1")
            assert "id" not in value
        else:
            assert value["id"] in {3, "three"}


# on a connection

PROMPT = b'{"id":3,"method":"session/prompt","params":{"sessionId":"s1","prompt":[]}}'


class Pipe:
    """A connection's correlator and reader."""

    def __init__(self, *requests: bytes) -> None:
        self.correlator = Correlator()
        self.reader = LineReader(self.correlator)
        for request in requests:
            self.submit(request)

    def submit(self, request: bytes, client: str = "") -> Pending:
        pending = self.correlator.submit(client, read_head(request), request).pending
        assert pending is not None
        return pending

    def read(self, *lines: bytes) -> list[Any]:
        """Read lines and match their responses, as a connection does; return the messages."""
        delivered: list[Any] = []
        for messages, heads in self.reader.read(lines):
            for message, head in zip(messages, heads, strict=True):
                assert read_head(message) == head
                if head.is_response:
                    self.correlator.match_response(head, message)
                delivered.append(json.loads(message))
        return delivered


def kinds(messages: list[Any]) -> list[str]:
    return [message.get("method", "response") for message in messages]


def test_the_raw_line_comes_first_and_the_repaired_message_follows() -> None:
    raw, message = Pipe(PROMPT).read(b"warning: " + ANSWER)
    assert raw["method"] == "_adapter/invalid_stdout"
    assert raw["params"]["raw"] == "warning: " + ANSWER.decode()
    assert raw["params"]["repaired"] == ["prefix"]
    assert raw["params"]["error"]
    assert message == marked(ANSWER, "prefix")


def test_the_mark_of_an_update_is_in_its_params() -> None:
    assert Pipe(PROMPT).read(b"\xef\xbb\xbf" + UPDATE)[1] == marked(UPDATE, "bom")


def test_the_mark_keeps_the_agents_own_meta() -> None:
    _, message = Pipe(PROMPT).read(b'x {"id":3,"result":{"_meta":{"a":1,"sandbox-agent":{"b":2}}}}')
    assert message["result"]["_meta"] == {"a": 1, "sandbox-agent": {"b": 2, "repaired": ["prefix"]}}


@pytest.mark.parametrize("rest", ['"error":{"code":-1,"message":"m"}', '"result":null', '"result":"text"'])
def test_a_response_without_a_result_object_is_repaired_and_not_marked(rest: str) -> None:
    text = f'{{"jsonrpc":"2.0","id":3,{rest}}}'
    raw, message = Pipe(PROMPT).read(b"\xef\xbb\xbf" + text.encode())
    assert message == json.loads(text)
    assert raw["params"]["repaired"] == ["bom"]


def test_a_request_whose_response_cannot_be_read_fails_with_the_line() -> None:
    raw, message = Pipe(PROMPT).read(ANSWER[:-2] + b"\x1b[0m")
    assert "repaired" not in raw["params"]
    assert message["id"] == 3
    assert message["error"]["code"] == -32700
    assert ANSWER[:-2].decode() in message["error"]["message"]
    assert "\x1b" not in message["error"]["message"]


def test_a_long_line_is_cut_in_the_error_and_in_the_feed() -> None:
    raw, message = Pipe(PROMPT).read(b'{"id":3,"result":"' + b"x" * (2 * MAX_RAW_BYTES) + b'",}')
    assert len(raw["params"]["raw"]) == MAX_RAW_BYTES
    assert len(message["error"]["message"]) < MAX_EXCERPT + 200


@pytest.mark.parametrize("start", [ANSWER[:-2], ANSWER + b"  "])
def test_the_start_of_an_oversized_line_names_its_request_and_is_no_message(start: bytes) -> None:
    line = OversizedLine(start)
    line.size = 10**9
    raw, message = Pipe(PROMPT).read(line)
    assert str(10**9) in raw["params"]["error"]
    assert (message["id"], message["error"]["code"]) == (3, -32700)


def test_a_session_id_that_is_no_text_is_not_known() -> None:
    line = b'x {"method":"session/update","params":{"sessionId":[]}}'
    assert kinds(Pipe(PROMPT).read(line)) == ["_adapter/invalid_stdout"]


def test_a_response_is_repaired_once() -> None:
    assert kinds(Pipe(PROMPT).read(ANSWER, b"x " + ANSWER)) == ["response", "_adapter/invalid_stdout"]
    broken = ANSWER[:-2]
    assert kinds(Pipe(PROMPT).read(ANSWER, broken)) == ["response", "_adapter/invalid_stdout"]


def test_an_id_is_the_one_that_the_agent_received() -> None:
    pipe = Pipe(PROMPT)
    wire_id = pipe.submit(PROMPT, "another client").wire_id
    pipe.read(b'x {"id":%b,"result":{}}' % wire_id)
    assert not pipe.correlator.is_pending(wire_id)
    assert pipe.correlator.is_pending(b"3")


@pytest.mark.parametrize(
    ("request_line", "response"),
    [
        (
            b'{"id":1,"method":"session/new","params":{}}',
            b'{"id":1,"result":{"sessionId":"s1"}}',
        ),
        (
            b'{"id":1,"method":"session/fork","params":{"sessionId":"s0"}}',
            b'{"id":1,"result":{"sessionId":"s1"}}',
        ),
        (b'{"id":1,"method":"session/load","params":{"sessionId":"s1"}}', b'{"id":1,"result":null}'),
        (PROMPT, b'{"method":"x"}'),
    ],
)
def test_a_session_is_known_when_a_client_names_it_or_the_agent_opens_it(
    request_line: bytes, response: bytes
) -> None:
    pipe = Pipe()
    broken = b"warning " + UPDATE
    assert kinds(pipe.read(broken)) == ["_adapter/invalid_stdout"]
    pipe.submit(request_line)
    # In one read with the response that opens the session.
    assert kinds(pipe.read(response, broken))[1:] == ["_adapter/invalid_stdout", "session/update"]


@pytest.mark.parametrize("message", [ANSWER, UPDATE], ids=["response", "update"])
@pytest.mark.parametrize("place", ["before", "after", "before and after"])
def test_a_message_that_the_agent_also_logs_is_delivered_once(message: bytes, place: str) -> None:
    log = b"DEBUG send: " + json.dumps(json.loads(message)).encode()
    lines = [log] * ("before" in place) + [message] + [log] * ("after" in place)
    pipe = Pipe(PROMPT)
    messages = [each for line in lines for each in pipe.read(line)]
    assert len([kind for kind in kinds(messages) if kind != "_adapter/invalid_stdout"]) == 1
    assert len(messages) == len(lines)


def test_the_same_text_twice_is_delivered_twice() -> None:
    pipe = Pipe(PROMPT)
    assert len(pipe.read(UPDATE, UPDATE)) == 2
    pipe.read(b"no message")
    assert len(pipe.read(UPDATE)) == 1
    assert kinds(pipe.read(b"\xef\xbb\xbf" + UPDATE))[1:] == ["session/update"]
    assert kinds(pipe.read(UPDATE)) == ["session/update"]
