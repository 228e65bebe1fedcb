"""Ids of one connection: nobody gets another's answer, nobody waits for an id that was taken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.engine.correlate import UNNAMED, Correlator, MatchedResponse, Pending
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, read_head

JsonObject = dict[str, Any]


class Pipe:
    """A correlator with the agent's end in hand."""

    def __init__(self) -> None:
        self.correlator = Correlator()

    def ask(self, request_id: Any, client: str = UNNAMED, method: str = "m") -> tuple[Pending, JsonObject]:
        """Submit a request; return it with what the agent reads."""
        raw = request_id if isinstance(request_id, bytes) else json.dumps(request_id).encode()
        envelope = b'{"jsonrpc":"2.0","id":%b,"method":"%b"}' % (raw, method.encode())
        submitted = self.correlator.submit(client, read_head(envelope), envelope)
        assert submitted.line is not None
        assert submitted.pending is not None
        return submitted.pending, json.loads(submitted.line)

    def answer(self, request_id: Any, result: Any = None) -> MatchedResponse | None:
        raw = request_id if isinstance(request_id, bytes) else json.dumps(request_id).encode()
        line = b'{"result":%b,"id":%b}' % (json.dumps(result).encode(), raw)
        return self.correlator.match_response(read_head(line), line)

    def agent_asks(self, request_id: Any) -> None:
        line = json.dumps({"id": request_id, "method": "session/request_permission"}).encode()
        self.correlator.register_agent_request(read_head(line))

    def client_answers(self, raw_id: bytes, client: str = UNNAMED) -> bytes | None:
        envelope = b'{"id":%b,"result":{}}' % raw_id
        return self.correlator.submit(client, read_head(envelope), envelope).line


def test_a_request_goes_through_byte_for_byte_when_its_id_is_free() -> None:
    envelope = b'{ "params" : {"x":1.0} ,"id":7, "method":"m"}'
    submitted = Correlator().submit("", read_head(envelope), envelope)
    assert submitted.line is envelope
    assert submitted.method == "m"


def test_an_envelope_over_several_lines_is_one_line_on_the_pipe() -> None:
    envelope = b'{\r\n  "method": "m"\n}'
    submitted = Correlator().submit("", read_head(envelope), envelope)
    assert submitted.line is not None
    assert b"\n" not in submitted.line
    assert b"\r" not in submitted.line
    assert json.loads(submitted.line) == {"method": "m"}


@pytest.mark.parametrize("clients", [("", ""), ("", "a"), ("a", "b"), ("a", "a")])
@pytest.mark.parametrize("same", [1, "x", 0, -5, 1.5, "", "\ud800"])
def test_two_requests_with_one_id_each_get_their_own_answer(clients: tuple[str, str], same: Any) -> None:
    pipe = Pipe()
    first, first_wire = pipe.ask(same, clients[0])
    second, second_wire = pipe.ask(same, clients[1])
    assert first_wire["id"] == same
    assert second_wire["id"] != same
    late = pipe.answer(second_wire["id"], "two")
    early = pipe.answer(first_wire["id"], "one")
    assert late is not None
    assert early is not None
    assert late.pending is second
    assert early.pending is first
    assert json.loads(late.line) == {"result": "two", "id": same}
    assert json.loads(early.line) == {"result": "one", "id": same}
    contested = clients[0] == clients[1]
    for answer in (late, early):
        shown = json.loads(answer.feed_line)
        assert shown["result"] == json.loads(answer.line)["result"]
        assert (shown["id"] == same) is not contested


@pytest.mark.parametrize(
    ("asked", "answered"), [("1.0", "1"), ("1", "1.0"), ("1e2", "100"), ('"\\u0061"', '"a"')]
)
def test_an_answer_is_matched_when_the_agent_writes_the_id_another_way(asked: str, answered: str) -> None:
    pipe = Pipe()
    pending, _ = pipe.ask(asked.encode())
    answer = pipe.answer(answered.encode(), "yes")
    assert answer is not None
    assert answer.pending is pending


def test_a_number_and_a_string_of_its_digits_are_two_ids() -> None:
    pipe = Pipe()
    number, _ = pipe.ask(1)
    string, wire = pipe.ask("1")
    assert wire["id"] == "1"
    answer = pipe.answer("1")
    assert answer is not None
    assert answer.pending is string
    answer = pipe.answer(1)
    assert answer is not None
    assert answer.pending is number


@pytest.mark.parametrize("weird", [b"true", b"{}", b"[]", b"[1]", b"1e400", b"-1e400"])
def test_a_request_with_a_weird_id_is_refused_and_leaves_nothing_pending(weird: bytes) -> None:
    pipe = Pipe()
    with pytest.raises(InvalidEnvelopeError):
        pipe.ask(weird)
    assert pipe.correlator.fail_all() == []


def test_an_id_is_free_again_after_its_answer() -> None:
    pipe = Pipe()
    for _ in range(3):
        _, wire = pipe.ask(1)
        assert wire["id"] == 1
        assert pipe.answer(1) is not None


def test_an_answer_that_nobody_asked_for_matches_nothing() -> None:
    pipe = Pipe()
    pipe.ask(1)
    assert pipe.answer(2) is None
    assert pipe.answer("1") is None
    assert pipe.answer(None) is None
    assert pipe.answer(b"{}") is None
    assert pipe.answer(1) is not None
    assert pipe.answer(1) is None


def test_an_alias_is_never_an_id_that_a_client_waits_for() -> None:
    pipe = Pipe()
    _, first_alias = (pipe.ask(1), pipe.ask(1))[1]
    taken = first_alias["id"] + 1
    mine, _ = pipe.ask(taken)
    _, wire = pipe.ask(1)
    assert wire["id"] != taken
    answer = pipe.answer(taken)
    assert answer is not None
    assert answer.pending is mine


@pytest.mark.parametrize("own", [0, 7, "3f2b0f5e-9c1e-4a53-8b38-0f3f0a9b5f11", ""])
def test_the_first_answer_to_the_agents_request_goes_through_and_later_ones_do_not(own: Any) -> None:
    pipe = Pipe()
    pipe.agent_asks(own)
    raw = json.dumps(own).encode()
    assert pipe.client_answers(raw, "a") is not None
    assert pipe.client_answers(raw, "b") is None
    assert pipe.client_answers(raw, "a") is None
    pipe.agent_asks(own)
    assert pipe.client_answers(raw, "b") is not None


def test_the_agents_ids_and_the_clients_ids_are_two_spaces() -> None:
    pipe = Pipe()
    pending, _ = pipe.ask(0)
    pipe.agent_asks(0)
    assert pipe.client_answers(b"0") is not None
    answer = pipe.answer(0)
    assert answer is not None
    assert answer.pending is pending


@pytest.mark.parametrize("raw_id", [b"5", b"null", b"{}", b"true"])
def test_an_answer_to_no_question_is_dropped(raw_id: bytes) -> None:
    assert Pipe().client_answers(raw_id) is None


@pytest.mark.parametrize("raw_id", ["null", "{}", "true"])
def test_the_agents_request_with_a_weird_id_passes_and_no_answer_to_it_does(raw_id: str) -> None:
    pipe = Pipe()
    pipe.correlator.register_agent_request(read_head(b'{"id":%b,"method":"m"}' % raw_id.encode()))
    assert pipe.client_answers(raw_id.encode()) is None


def test_all_that_pends_fails_at_once_and_is_forgotten() -> None:
    pipe = Pipe()
    waiting = [pipe.ask(number % 3, f"c{number}")[0] for number in range(7)]
    pipe.agent_asks(1)
    assert pipe.correlator.fail_all() == waiting
    assert pipe.correlator.fail_all() == []
    assert pipe.client_answers(b"1") is None


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "b"]), st.sampled_from([0, 1, "1", "x"]), st.integers(0, 5)),
        max_size=30,
    )
)
def test_every_request_gets_its_own_answer_under_its_own_id_in_any_order(
    plan: list[tuple[str, Any, int]],
) -> None:
    pipe = Pipe()
    open_requests: list[tuple[Pending, str, Any, Any]] = []
    for client, request_id, answer_now in plan:
        pending, wire = pipe.ask(request_id, client)
        assert not any(wire["id"] == other and type(wire["id"]) is type(other) for *_, other in open_requests)
        open_requests.append((pending, client, request_id, wire["id"]))
        if answer_now < len(open_requests):
            _settle(pipe, *open_requests.pop(answer_now))
    while open_requests:
        _settle(pipe, *open_requests.pop())
    assert pipe.correlator.fail_all() == []


def _settle(pipe: Pipe, pending: Pending, client: str, request_id: Any, wire_id: Any) -> None:
    answer = pipe.answer(wire_id, {"for": client})
    assert answer is not None
    assert answer.pending is pending
    assert pending.client == client
    assert json.loads(answer.line) == {"result": {"for": client}, "id": request_id}


def test_an_answer_that_was_never_written_may_be_given_again() -> None:
    pipe = Pipe()
    pipe.agent_asks(0)
    envelope = b'{"id":0,"result":{}}'
    submitted = pipe.correlator.submit("", read_head(envelope), envelope)
    assert pipe.client_answers(b"0") is None
    pipe.correlator.retract(submitted)
    assert pipe.client_answers(b"0") == b'{"id":0,"result":{}}'
    assert pipe.client_answers(b"0") is None


def test_the_id_of_a_request_that_was_never_written_is_free_again() -> None:
    pipe = Pipe()
    envelope = b'{"id":1,"method":"m"}'
    pipe.correlator.retract(pipe.correlator.submit("", read_head(envelope), envelope))
    _, wire = pipe.ask(1)
    assert wire["id"] == 1
    assert len(pipe.correlator.fail_all()) == 1
